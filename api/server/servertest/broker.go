// Package servertest has a strict fake of the broker, and a server on top of it, for tests of the HTTP side.
// It checks nothing about access: what the real broker decides is tested with the real broker. No program may
// import it, and it must never take silently what the real broker could not have been asked.
package servertest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/access/consent"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/access/policy"
	"github.com/prototypster/pdvault/api/server"
)

// Broker keeps records in memory and answers as a broker would. It fails the test when the server asks what
// it must not: without a caller, without a subject, or with a name that is none.
type Broker struct {
	tb  testing.TB
	now func() time.Time

	mu       sync.Mutex // guards all below
	fail     error      // what every call returns, when not nil
	block    chan struct{}
	panics   any
	subjects map[uuid.UUID]*subject
	consents []access.Consent
	entries  []access.Entry
	policies [][]byte
	replies  map[string]access.Written
	denied   []string
	calls    int

	erasures      map[uuid.UUID]*erased // by id of the certificate
	undone        bool                  // erasures are left as they are
	rotations     []access.Rotation     // the newest first
	rotationFails string
	rotationStep  int64
}

type subject struct {
	version    uint64
	restricted bool
	records    map[string]*record
}

type record struct {
	version uint64
	fields  map[string][]byte
	entry   int64
}

var _ server.Broker = (*Broker)(nil)

// Start is the time that a Broker begins with; it does not move.
var Start = time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)

// NewBroker returns an empty Broker with one published policy.
func NewBroker(tb testing.TB) *Broker {
	return &Broker{
		tb: tb, now: func() time.Time { return Start },
		subjects: map[uuid.UUID]*subject{}, replies: map[string]access.Written{}, erasures: map[uuid.UUID]*erased{},
		policies: [][]byte{[]byte("{\"operator\": {\"id\":\"prototypster\"}}\n")},
	}
}

// Fail makes every call return err; nil ends that.
func (b *Broker) Fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fail = err
}

// Block makes every call wait for its context to end, until the returned function is called.
func (b *Broker) Block() func() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.block = make(chan struct{})
	return sync.OnceFunc(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		close(b.block)
		b.block = nil
	})
}

// Panic makes every call panic with v; nil ends that.
func (b *Broker) Panic(v any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.panics = v
}

// LoginsDenied returns the reasons of LoginDenied so far.
func (b *Broker) LoginsDenied() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.denied)
}

// Calls counts the calls so far, LoginDenied left out.
func (b *Broker) Calls() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.calls
}

// MustCreate adds a subject with one record.
func (b *Broker) MustCreate(collection, object string) uuid.UUID {
	b.tb.Helper()
	w, err := b.CreateSubject(b.tb.Context(), access.CreateRequest{
		Request: access.Request{Caller: verify.Caller{ID: "test"}}, Records: map[string][]byte{collection: []byte(object)},
	})
	if err != nil {
		b.tb.Fatal(err)
	}
	return w.Subject
}

// Spoil makes the value of a field empty, which no stored value is.
func (b *Broker) Spoil(id uuid.UUID, collection, field string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.subjects[id].records[collection].fields[field] = nil
}

// recordLocked appends an entry and returns its index. mu is held.
func (b *Broker) recordLocked(kind string, r access.Request) int64 {
	return b.appendLocked(verify.Entry{Kind: kind}, r)
}

// appendLocked appends e with what every entry has.
func (b *Broker) appendLocked(e verify.Entry, r access.Request) int64 {
	index := int64(len(b.entries))
	e.ID, e.Time, e.Trace = uuid.Must(uuid.NewV7()).String(), verify.FormatTime(b.now()), r.Trace
	e.Caller = &verify.Caller{ID: r.Caller.ID, Kind: r.Caller.Kind, Role: r.Caller.Role, Authn: r.Caller.Authn}
	raw, err := verify.Encode(e)
	if err != nil {
		b.tb.Errorf("fake broker: %v", err)
	}
	b.entries = append(b.entries, access.Entry{Index: index, Bytes: raw})
	return index
}

var (
	name    = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
	traceID = regexp.MustCompile(`^([0-9a-f]{32})?$`)
)

func (b *Broker) names(names ...string) {
	for _, n := range names {
		if !name.MatchString(n) {
			b.tb.Errorf("fake broker: was given %q as a name", n)
		}
	}
}

// begin checks what every call must have, and fails it when told to. After it mu is held.
func (b *Broker) begin(ctx context.Context, r access.Request) (unlock func(), err error) {
	if r.Caller.ID == "" {
		b.tb.Errorf("fake broker: called without a caller")
	}
	if !traceID.MatchString(r.Trace) {
		b.tb.Errorf("fake broker: trace %q", r.Trace)
	}
	if _, ok := ctx.Deadline(); !ok && b.tb.Context() != ctx {
		b.tb.Errorf("fake broker: called without a deadline")
	}
	b.mu.Lock()
	b.calls++
	if block := b.block; block != nil {
		b.mu.Unlock()
		select {
		case <-ctx.Done():
			return func() {}, ctx.Err()
		case <-block:
		}
		b.mu.Lock()
	}
	if b.panics != nil {
		v := b.panics
		b.mu.Unlock()
		panic(v)
	}
	return b.mu.Unlock, b.fail
}

func (b *Broker) findLocked(id uuid.UUID, collection string) (*subject, *record, error) {
	if id == uuid.Nil {
		b.tb.Errorf("fake broker: called without a subject")
	}
	s := b.subjects[id]
	if s == nil {
		return nil, nil, access.ErrNotFound
	}
	return s, s.records[collection], nil
}

func split(object []byte) (map[string][]byte, error) {
	var fields map[string]jsontext.Value
	if err := json.Unmarshal(object, &fields); err != nil {
		return nil, &access.FieldError{Field: "/", Why: "must be an object"}
	}
	out := make(map[string][]byte, len(fields))
	for name, v := range fields {
		out[name] = v
	}
	return out, nil
}

func (b *Broker) readLocked(r access.Request, id uuid.UUID, collection string, fields []string) (access.ReadResult, error) {
	b.names(append(fields, collection)...)
	_, rec, err := b.findLocked(id, collection)
	if err != nil {
		return access.ReadResult{}, err
	}
	if rec == nil {
		return access.ReadResult{}, access.ErrNotFound
	}
	out := rec.fields
	if len(fields) > 0 {
		out = map[string][]byte{}
		for _, f := range fields {
			if v, ok := rec.fields[f]; ok {
				out[f] = v
			}
		}
	}
	return access.ReadResult{
		Subject: id, Collection: collection, Version: rec.version, Fields: out,
		Record: b.recordLocked(verify.KindAccess, r), Ground: verify.GroundService,
	}, nil
}

func (b *Broker) Read(ctx context.Context, q access.ReadRequest) (access.ReadResult, error) {
	unlock, err := b.begin(ctx, q.Request)
	defer unlock()
	if err != nil {
		return access.ReadResult{}, err
	}
	b.names(q.Purpose)
	return b.readLocked(q.Request, q.Subject, q.Collection, q.Fields)
}

func (b *Broker) ReadBatch(ctx context.Context, q access.BatchRequest) ([]access.BatchResult, error) {
	unlock, err := b.begin(ctx, q.Request)
	defer unlock()
	if err != nil {
		return nil, err
	}
	if len(q.Reads) == 0 || len(q.Reads) > access.MaxBatch {
		b.tb.Errorf("fake broker: batch of %d", len(q.Reads))
	}
	results := make([]access.BatchResult, len(q.Reads))
	for i, item := range q.Reads {
		r, err := b.readLocked(q.Request, item.Subject, item.Collection, item.Fields)
		if err != nil {
			results[i].Err = err
			continue
		}
		results[i].Read = &r
	}
	return results, nil
}

func (b *Broker) Check(ctx context.Context, q access.ReadRequest) (access.CheckResult, error) {
	unlock, err := b.begin(ctx, q.Request)
	defer unlock()
	if err != nil {
		return access.CheckResult{}, err
	}
	if q.Purpose == "newsletter" {
		return access.CheckResult{Ground: verify.GroundConsent, Reason: policy.ReasonConsentMissing,
			Missing: []policy.Missing{{Kind: policy.MissingConsent, Name: "newsletter"}}}, nil
	}
	return access.CheckResult{Allow: true, Ground: verify.GroundService, Fields: q.Fields}, nil
}

func (b *Broker) Lookup(ctx context.Context, q access.LookupRequest) (access.LookupResult, error) {
	unlock, err := b.begin(ctx, q.Request)
	defer unlock()
	if err != nil {
		return access.LookupResult{}, err
	}
	b.names(q.Purpose, q.Collection, q.Field)
	want, err := jsontext.AppendQuote(nil, q.Value)
	if err != nil {
		return access.LookupResult{}, err
	}
	var found access.LookupResult
	for id, s := range b.subjects {
		if r := s.records[q.Collection]; r != nil && bytes.Equal(r.fields[q.Field], want) {
			found.Subjects = append(found.Subjects, id)
			found.Records = append(found.Records, b.recordLocked(verify.KindAccess, q.Request))
		}
	}
	if found.Records == nil {
		found.Records = []int64{b.recordLocked(verify.KindAccess, q.Request)}
	}
	slices.SortFunc(found.Subjects, func(x, y uuid.UUID) int { return bytes.Compare(x[:], y[:]) })
	return found, nil
}

func (b *Broker) Verify(ctx context.Context, q access.VerifyRequest) (access.VerifyResult, error) {
	unlock, err := b.begin(ctx, q.Request)
	defer unlock()
	if err != nil {
		return access.VerifyResult{}, err
	}
	b.names(q.Purpose, q.Collection, q.Field)
	_, rec, err := b.findLocked(q.Subject, q.Collection)
	if err != nil || rec == nil {
		return access.VerifyResult{}, access.ErrNotFound
	}
	return access.VerifyResult{Match: bytes.Equal(rec.fields[q.Field], q.Value), Record: b.recordLocked(verify.KindAccess, q.Request)}, nil
}

func (b *Broker) CreateSubject(ctx context.Context, q access.CreateRequest) (access.Written, error) {
	unlock, err := b.begin(ctx, q.Request)
	defer unlock()
	if err != nil {
		return access.Written{}, err
	}
	scope := fmt.Sprint(q.Caller.ID, "\x00", q.Route, "\x00", q.Key)
	if q.Key != "" {
		if w, ok := b.replies[scope+string(q.Fingerprint[:])]; ok {
			return w, nil
		}
		for known := range b.replies {
			if len(known) == len(scope)+32 && known[:len(scope)] == scope {
				return access.Written{}, access.ErrIdempotencyMismatch
			}
		}
	}
	s := &subject{version: 1, records: map[string]*record{}}
	index := b.recordLocked(verify.KindSubjectCreated, q.Request)
	for collection, object := range q.Records {
		b.names(collection)
		fields, err := split(object)
		if err != nil {
			return access.Written{}, err
		}
		if _, bad := fields["unknown"]; bad {
			return access.Written{}, &access.FieldError{Field: "/records/" + collection, Why: "has a field that the schema does not know"}
		}
		s.records[collection] = &record{version: 1, fields: fields, entry: index}
	}
	id := uuid.New()
	b.subjects[id] = s
	w := access.Written{Subject: id, Version: 1, Created: true, Record: index}
	if q.Key != "" {
		b.replies[scope+string(q.Fingerprint[:])] = w
	}
	return w, nil
}

func (b *Broker) write(ctx context.Context, q access.WriteRequest, kind string, change func(old map[string][]byte) (map[string][]byte, error)) (access.Written, error) {
	unlock, err := b.begin(ctx, q.Request)
	defer unlock()
	if err != nil {
		return access.Written{}, err
	}
	b.names(q.Collection)
	s, old, err := b.findLocked(q.Subject, q.Collection)
	if err != nil {
		return access.Written{}, err
	}
	switch {
	case q.IfAbsent && old != nil, q.IfMatch != nil && (old == nil || old.version != *q.IfMatch):
		return access.Written{}, access.ErrVersion
	case old != nil && q.IfMatch == nil:
		return access.Written{}, access.ErrVersionRequired
	}
	rec := &record{version: 1}
	var before map[string][]byte
	if old != nil {
		before, rec.version = old.fields, old.version+1
	}
	if rec.fields, err = change(before); err != nil {
		return access.Written{}, err
	}
	rec.entry = b.recordLocked(kind, q.Request)
	s.version++
	if rec.fields == nil {
		delete(s.records, q.Collection)
	} else {
		s.records[q.Collection] = rec
	}
	return access.Written{Subject: q.Subject, Version: rec.version, Created: old == nil, Record: rec.entry}, nil
}

func (b *Broker) PutRecord(ctx context.Context, q access.WriteRequest) (access.Written, error) {
	return b.write(ctx, q, verify.KindRecordWritten, func(map[string][]byte) (map[string][]byte, error) { return split(q.Body) })
}

func (b *Broker) PatchRecord(ctx context.Context, q access.WriteRequest) (access.Written, error) {
	return b.write(ctx, q, verify.KindRecordWritten, func(old map[string][]byte) (map[string][]byte, error) {
		if old == nil {
			return nil, access.ErrNotFound
		}
		patch, err := split(q.Body)
		if err != nil {
			return nil, err
		}
		out := maps.Clone(old)
		for name, v := range patch {
			if string(v) == "null" {
				delete(out, name)
			} else {
				out[name] = v
			}
		}
		return out, nil
	})
}

func (b *Broker) DeleteRecord(ctx context.Context, q access.WriteRequest) (access.Written, error) {
	return b.write(ctx, q, verify.KindRecordDeleted, func(old map[string][]byte) (map[string][]byte, error) {
		if old == nil {
			return nil, access.ErrNotFound
		}
		return nil, nil
	})
}

func (b *Broker) Describe(ctx context.Context, r access.Request, id uuid.UUID) (access.SubjectInfo, error) {
	unlock, err := b.begin(ctx, r)
	defer unlock()
	if err != nil {
		return access.SubjectInfo{}, err
	}
	s, _, err := b.findLocked(id, "")
	if err != nil {
		return access.SubjectInfo{}, err
	}
	info := access.SubjectInfo{ID: id, Version: s.version, Created: b.now(), Restricted: s.restricted, Records: map[string]access.RecordInfo{}}
	for collection, rec := range s.records {
		info.Records[collection] = access.RecordInfo{Version: rec.version, Entry: rec.entry}
	}
	for _, c := range b.consents {
		if c.Subject == id {
			info.Consents = append(info.Consents, c)
		}
	}
	return info, nil
}

func (b *Broker) SetRestriction(ctx context.Context, r access.Request, id uuid.UUID, on bool, _ string) (access.Written, error) {
	unlock, err := b.begin(ctx, r)
	defer unlock()
	if err != nil {
		return access.Written{}, err
	}
	s, _, err := b.findLocked(id, "")
	if err != nil {
		return access.Written{}, err
	}
	s.restricted = on
	s.version++
	kind := verify.KindRestrictionLift
	if on {
		kind = verify.KindRestrictionSet
	}
	return access.Written{Subject: id, Version: s.version, Record: b.recordLocked(kind, r)}, nil
}

func (b *Broker) GiveConsent(ctx context.Context, q access.ConsentRequest) (access.Consent, error) {
	unlock, err := b.begin(ctx, q.Request)
	defer unlock()
	if err != nil {
		return access.Consent{}, err
	}
	if _, _, err := b.findLocked(q.Subject, ""); err != nil {
		return access.Consent{}, err
	}
	c := access.Consent{
		ID: uuid.New(), Subject: q.Subject, Purpose: q.Purpose, Policy: max(q.Policy, 1), State: consent.Given,
		Fields: []string{"profile.email", "profile.name"}, Recipients: []string{"shop"}, GivenAt: b.now(), NotAfter: q.NotAfter,
		SeparateDocument: q.SeparateDocument, Language: q.Language, NoticeSHA256: q.NoticeSHA256,
		Entry: b.recordLocked(verify.KindConsentGiven, q.Request),
	}
	b.consents = append(b.consents, c)
	return c, nil
}

func (b *Broker) WithdrawConsent(ctx context.Context, r access.Request, id uuid.UUID) (access.Consent, error) {
	unlock, err := b.begin(ctx, r)
	defer unlock()
	if err != nil {
		return access.Consent{}, err
	}
	for i := range b.consents {
		if c := &b.consents[i]; c.ID == id {
			c.State, c.WithdrawnAt = consent.Withdrawn, b.now()
			c.WithdrawnEntry = b.recordLocked(verify.KindConsentWithdrawn, r)
			return *c, nil
		}
	}
	return access.Consent{}, access.ErrNotFound
}

func (b *Broker) Consents(ctx context.Context, r access.Request, id uuid.UUID) ([]access.Consent, error) {
	info, err := b.Describe(ctx, r, id)
	return info.Consents, err
}

func (b *Broker) Entries(ctx context.Context, r access.Request, f access.EntryFilter) (access.EntryPage, error) {
	unlock, err := b.begin(ctx, r)
	defer unlock()
	if err != nil {
		return access.EntryPage{}, err
	}
	if f.Limit < 1 || f.Cursor < 0 {
		b.tb.Errorf("fake broker: limit %d, cursor %d", f.Limit, f.Cursor)
	}
	page := access.EntryPage{Next: -1}
	for i := f.Cursor; i < int64(len(b.entries)); i++ {
		if len(page.Entries) == f.Limit {
			page.Next = i
			break
		}
		page.Entries = append(page.Entries, b.entries[i])
	}
	return page, nil
}

func (b *Broker) Entry(ctx context.Context, r access.Request, index int64) (access.Entry, error) {
	unlock, err := b.begin(ctx, r)
	defer unlock()
	if err != nil {
		return access.Entry{}, err
	}
	if index >= int64(len(b.entries)) {
		return access.Entry{}, access.ErrNotFound
	}
	return b.entries[index], nil
}

func (b *Broker) Proof(ctx context.Context, r access.Request, index int64) ([]byte, error) {
	if _, err := b.Entry(ctx, r, index); err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "c2sp.org/tlog-proof@v1\nindex %d\n\n", index), nil
}

func (b *Broker) LogCheckpoint(ctx context.Context, r access.Request) ([]byte, error) {
	unlock, err := b.begin(ctx, r)
	defer unlock()
	if err != nil {
		return nil, err
	}
	root := base64.StdEncoding.EncodeToString(make([]byte, 32))
	return fmt.Appendf(nil, "localhost/ledger\n%d\n%s\n\n— localhost/ledger AAAA\n", len(b.entries), root), nil
}

// LogTile answers any path with the path itself: what is asked for is what a test wants to see.
func (b *Broker) LogTile(ctx context.Context, r access.Request, path string) ([]byte, error) {
	unlock, err := b.begin(ctx, r)
	defer unlock()
	if err != nil {
		return nil, err
	}
	if _, err := verify.ParseTilePath(path); err != nil {
		return nil, access.ErrNotFound
	}
	return []byte(path), nil
}

func (b *Broker) versionLocked(version int64) (access.PolicyVersion, []byte, error) {
	if version < 1 || version > int64(len(b.policies)) {
		return access.PolicyVersion{}, nil, access.ErrNotFound
	}
	raw := b.policies[version-1]
	sum := sha256.Sum256(raw)
	return access.PolicyVersion{
		Version: version, SHA256: hex.EncodeToString(sum[:]), TextSHA256: hex.EncodeToString(sum[:]), Published: b.now(), Entry: version,
	}, raw, nil
}

func (b *Broker) Policy(ctx context.Context, r access.Request) (access.PolicyVersion, []byte, error) {
	unlock, err := b.begin(ctx, r)
	defer unlock()
	if err != nil {
		return access.PolicyVersion{}, nil, err
	}
	return b.versionLocked(int64(len(b.policies)))
}

func (b *Broker) PublishPolicy(ctx context.Context, r access.Request, raw []byte) (access.PolicyVersion, error) {
	unlock, err := b.begin(ctx, r)
	defer unlock()
	if err != nil {
		return access.PolicyVersion{}, err
	}
	if !jsontext.Value(raw).IsValid() {
		return access.PolicyVersion{}, &policy.BundleError{Reason: "is not JSON"}
	}
	b.policies = append(b.policies, bytes.Clone(raw))
	v, _, err := b.versionLocked(int64(len(b.policies)))
	return v, err
}

func (b *Broker) PolicyVersions(ctx context.Context, r access.Request) ([]access.PolicyVersion, error) {
	unlock, err := b.begin(ctx, r)
	defer unlock()
	if err != nil {
		return nil, err
	}
	var out []access.PolicyVersion
	for i := range b.policies {
		v, _, _ := b.versionLocked(int64(i + 1))
		out = append(out, v)
	}
	return out, nil
}

func (b *Broker) PolicyVersion(ctx context.Context, r access.Request, version int64) (access.PolicyVersion, []byte, error) {
	unlock, err := b.begin(ctx, r)
	defer unlock()
	if err != nil {
		return access.PolicyVersion{}, nil, err
	}
	return b.versionLocked(version)
}

func (b *Broker) PermitBackup(ctx context.Context, r access.Request) error {
	unlock, err := b.begin(ctx, r)
	defer unlock()
	if err == nil && r.Caller.Role != policy.RoleSecurity {
		err = &access.DeniedError{Reason: policy.ReasonRoleNotAllowed, Record: -1}
	}
	return err
}

func (b *Broker) LoginDenied(_ context.Context, r access.Request, reason string) {
	if r.Caller != (verify.Caller{}) {
		b.tb.Errorf("fake broker: a denied login has a caller")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.denied = append(b.denied, reason)
}

// Subjects counts the subjects.
func (b *Broker) Subjects() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.subjects)
}
