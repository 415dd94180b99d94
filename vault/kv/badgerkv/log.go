package badgerkv

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/dgraph-io/badger/v4"
)

var _ badger.Logger = engineLog{}

// engineLog passes Badger's messages to slog. Badger is talkative, so that its information is our debugging. It calls
// within what it tells of, and that is how its compactions are watched.
type engineLog struct {
	log         *slog.Logger
	compactions *compactions // nil: nothing is watched
}

// The messages by which compactions are watched, as Badger v4.9.6 has them. TestCompactionsAreSeen fails with an engine
// that has others.
const (
	msgAnnounced = "[%d] LOG Compact. Added %d keys. Skipped %d keys. Iteration took: %v"
	msgCounted   = "Discard stats: %v"
	msgDone      = "[Compactor: %d] Compaction for level: %d DONE"
	msgFailed    = "[Compactor: %d] LOG Compact FAILED with error: %+v: %+v"
	msgNotDone   = "While running doCompact: %v\n"
	msgLevels    = "\nLevel 0 [" // while closing, after the last compaction
)

func (l engineLog) Errorf(format string, args ...any) { l.log.Error(message(format, args)) }

func (l engineLog) Warningf(format string, args ...any) {
	switch format {
	case msgFailed:
		// The whole message holds ranges of keys.
		err := innermost(args[1])
		l.log.Warn("badger: compaction failed", "error", err)
		if id, ok := args[0].(int); ok && l.compactions != nil {
			l.compactions.failed(id, err)
		}
	case msgNotDone:
		l.log.Warn("badger: compaction failed", "error", innermost(args[0]))
	default:
		l.log.Warn(message(format, args))
	}
}

func (l engineLog) Infof(format string, args ...any) {
	if l.compactions != nil && strings.HasPrefix(format, msgLevels) {
		l.compactions.compactorsStopped()
	}
	if strings.Contains(format, "Range (numTables") {
		return // a dump of keys
	}
	l.log.Debug(message(format, args))
}

// Debugf drops the message: Badger writes several for each commit.
func (l engineLog) Debugf(format string, args ...any) {
	if l.compactions == nil {
		return
	}
	switch format {
	case msgAnnounced:
		l.compactions.announce(args[0].(int), args[1].(uint64))
	case msgCounted:
		l.compactions.count()
	case msgDone:
		l.compactions.done(args[0].(int))
	}
}

// innermost is the cause of an error of Badger. What Badger puts in front of it may hold keys.
func innermost(v any) error {
	err, ok := v.(error)
	if !ok {
		return errors.New("unknown")
	}
	text := err.Error()
	if i := strings.LastIndex(text, " err: "); i >= 0 {
		return errors.New(text[i+len(" err: "):])
	}
	return err
}

func message(format string, args []any) string {
	return "badger: " + strings.TrimSpace(fmt.Sprintf(format, args...))
}
