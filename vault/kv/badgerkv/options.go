package badgerkv

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"

	"github.com/prototypster/pdvault/vault/kv"
)

// ExitCode is that of a process whose store could not commit (EX_IOERR of sysexits.h).
const ExitCode = 74

const (
	valueThreshold = 1 << 20  // larger values would go to the value log, whose sync errors Badger swallows
	valueLogSize   = 64 << 20 // Badger maps twice this and syncs the map at each commit
	baseLevelSize  = 256 << 20

	// Badger compacts some tables of level 0 among themselves when it cannot compact them into the next level, at least 4
	// that are not being compacted. It then drops a deletion that hides nothing in the levels below, though it may hide a
	// value in a table of level 0 that was left out: what was deleted would come back. That needs an empty level below,
	// and so the first compaction into it under way. It takes compactTables at least, if their ranges of keys overlap, which
	// they do where each commit writes some row that others write too; writers wait before there are 4 more.
	compactTables = 5
	stallTables   = compactTables + 3

	minMemTable     = 1 << 20
	fullMemTable    = 8 << 20 // the smallest that takes a value of kv.MaxValueSize with room for its transaction
	badgerTxnShare  = 15      // per cent of the memtable that one transaction may fill
	formatVersion   = 1       // of what lies in Badger under our keys; an older binary refuses a newer one
	defaultMemTable = 32 << 20
	defaultTables   = 3
)

// Options say where a store lies and how much it may use. Only Dir is required.
type Options struct {
	// Dir is the store's directory, best on a file system of its own: ext4 or XFS.
	Dir string
	// Kind says what the store is for, such as "data" or "keys". Create writes it into the store; Open
	// refuses a store of another kind. Empty: Open takes any kind.
	Kind string
	// Logger gets the engine's messages. Nil: slog.Default().
	Logger *slog.Logger
	// Fatal is called when a commit fails for another reason than a conflict or its size, and when a compaction has not
	// written what it should. What the disk holds is then not what memory shows, so it must not return; if it does, as
	// in tests, every further call fails.
	// Nil: log, then exit with ExitCode.
	Fatal func(error)
	// Now tells the time for the store's own records. Nil: time.Now.
	Now func() time.Time

	// Space says when the store stops to write.
	Space Space

	// MemTableSize is the size in bytes of a memtable. Each of up to NumMemtables+1 of them takes 1.3 times
	// as much memory when full, and one transaction may fill 15 % of one. Below 8 MiB, which is for tests,
	// the largest value is smaller than kv.MaxValueSize. Zero: 32 MiB.
	MemTableSize int64
	// NumMemtables is how many full memtables may wait to become tables before writers wait. Zero: 3.
	NumMemtables int

	hooks hooks
}

// Space are the limits of the free-space guard in bytes. A full disk kills a process that writes to a
// mapped file, without an error to handle, so the store stops before that. Zero means the default, a
// negative number none.
type Space struct {
	// ReadOnly: with less free space than this, only contexts from kv.UseReserve may write.
	// Default: the greatest of 1 GiB, 5 % of the file system, and three times the engine's mapped logs.
	ReadOnly int64
	// Reserve: with less free space than this, nobody may write, and no compaction begins. Default: the size of the mapped
	// logs and of what a compaction into the base level may write, or three quarters of ReadOnly if that is less. It is
	// never more than ReadOnly. With less, a compaction may find the disk full, and the process dies and loses nothing.
	Reserve int64
	// Ballast is really allocated and is given up when free space falls below Reserve, so that there
	// is something left to work with when another program has filled the disk. Default: 256 MiB.
	Ballast int64
}

// hooks replace parts in this package's tests.
type hooks struct {
	noSync     bool // the negative control: a store that loses acknowledged writes
	skipVerify bool // lets noSync past the check that would refuse it
	statfs     func(dir string) (fsInfo, error)
	committed  func(error) error // gets the outcome of each commit, and returns the one to believe
	// compacting is called within compactions: "announced" before a table is written, "counted" when that is recorded,
	// "done" before the compaction is checked; and "held" when the engine is about to be closed.
	compacting func(point string)
	impatient  bool                                // compactions wait for nothing but room
	tune       func(badger.Options) badger.Options // small levels, so that there are many
}

func (o Options) withDefaults() (Options, error) {
	if o.Dir == "" {
		return o, errors.New("badgerkv: Options.Dir is required")
	}
	if o.MemTableSize != 0 && o.MemTableSize < minMemTable {
		return o, fmt.Errorf("badgerkv: MemTableSize %d is below %d", o.MemTableSize, minMemTable)
	}
	orDefault(&o.MemTableSize, defaultMemTable)
	orDefault(&o.NumMemtables, defaultTables)
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Fatal == nil {
		log := o.Logger
		o.Fatal = func(err error) {
			log.Error("store cannot commit, exiting", "error", err)
			os.Exit(ExitCode)
		}
	}
	if o.hooks.statfs == nil {
		o.hooks.statfs = statfs
	}
	return o, nil
}

func orDefault[T int | int64](v *T, def T) {
	if *v == 0 {
		*v = def
	}
}

// mappedLogs is the size of the files that Badger maps and writes to: one memtable's and one value log's.
func (o Options) mappedLogs() int64 { return 2*o.MemTableSize + 2*valueLogSize }

// compaction is about what one from level 0 writes: it begins while the base level is at most so much larger than it should
// be as level 0 is.
func (o Options) compaction() int64 {
	return baseLevelSize*stallTables/compactTables + stallTables*o.MemTableSize
}

// threshold is Badger's ValueThreshold, which must not be above what one transaction may hold.
func (o Options) threshold() int64 {
	return min(valueThreshold, o.MemTableSize*badgerTxnShare/100)
}

// maxValueSize keeps every value on the path of the write-ahead log, also with the memtables of tests.
func (o Options) maxValueSize() int {
	if o.MemTableSize >= fullMemTable {
		return kv.MaxValueSize
	}
	return int(min(kv.MaxValueSize, o.threshold()/2))
}

// engine returns Badger's options. The reasons are in vault/DESIGN.md.
func (o Options) engine() badger.Options {
	return badger.DefaultOptions(o.Dir).
		WithSyncWrites(!o.hooks.noSync).
		WithValueThreshold(o.threshold()).
		WithValueLogFileSize(valueLogSize).
		WithMemTableSize(o.MemTableSize).
		WithNumMemtables(o.NumMemtables).
		WithNumVersionsToKeep(1).
		WithDetectConflicts(true).
		WithCompression(options.None). // ciphertext does not compress
		// The default of 10 MiB makes four levels of 1.6 GB, each of which writes everything again; this makes two.
		WithBaseLevelSize(baseLevelSize).
		WithNumLevelZeroTables(compactTables).
		WithNumLevelZeroTablesStall(stallTables).
		// Blocks and indexes that are neither compressed nor encrypted lie in mapped files, so the page cache has them. In
		// Badger's own cache a block counts as all of its file behind it, so that a few fill it and each read replaces one.
		WithBlockCacheSize(0).
		WithIndexCacheSize(0).
		// OnBlockRead turns damage into "not found"; OnTableAndBlockRead panics; OnTableRead would only read again what we have
		// verified ourselves.
		WithChecksumVerificationMode(options.NoVerification).
		WithVerifyValueChecksum(true).
		WithNumCompactors(2). // one is refused
		WithMetricsEnabled(true).
		WithExternalMagic(formatVersion).
		WithLogger(engineLog{log: o.Logger})
}

// verifyEngine refuses options under which an acknowledged write could be lost or damage be overlooked. It
// looks at the result, so that no later change of the code above can weaken it unnoticed.
func verifyEngine(o badger.Options) error {
	switch {
	case !o.SyncWrites:
		return errors.New("badgerkv: refusing to run without synced writes")
	case o.InMemory, o.BypassLockGuard, !o.DetectConflicts:
		return errors.New("badgerkv: refusing an engine mode that gives up durability or isolation")
	case o.NumLevelZeroTablesStall > o.NumLevelZeroTables+3:
		return errors.New("badgerkv: refusing an engine that may bring back what was deleted")
	case o.ChecksumVerificationMode != options.NoVerification:
		return errors.New("badgerkv: refusing an engine that takes a damaged block for an empty one")
	case o.Logger == nil:
		return errors.New("badgerkv: refusing to run without the engine's log")
	}
	return nil
}
