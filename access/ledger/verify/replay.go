package verify

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"golang.org/x/mod/sumdb/note"
)

// Policies tells whether a version of the policy would have permitted an access that is recorded as allowed:
// its purpose, caller, mode and fields, the agreement or consent at that time, and the policy's own rules.
type Policies interface {
	// Covers returns nil when it would have, ErrNoBundle when the bundle of the version is not there to be
	// asked, and otherwise an error that says what is not covered.
	Covers(version int64, e Entry, g Given) error
}

// Given is what the log said before an access and the policy's decision rests on.
type Given struct {
	Published int64          // index of the policy.published entry of the version
	Consent   *ConsentChange // the one that is evidence; nil for the other grounds
}

// ErrNoBundle is returned by a [Policies] that has not got the bundle of a version.
var ErrNoBundle = errors.New("verify: no policy bundle of this version")

// Codes of problems with what entries say. The log itself is as it was signed.
const (
	CodeDecision      = "decision"             // an access is neither allowed nor denied
	CodeGround        = "ground"               // allowed with no ground, or one that does not exist
	CodeEvidence      = "evidence"             // no evidence, or it names no earlier entry of the right kind
	CodeConsent       = "consent"              // the consent does not cover the access
	CodeWithdrawn     = "consent-withdrawn"    // the consent was withdrawn before
	CodeExpired       = "consent-expired"      // the consent was over
	CodeInvalidated   = "consent-invalidated"  // another was given for the same purpose before
	CodePolicyVersion = "policy-version"       // not the policy in force
	CodeNotCovered    = "policy-not-covered"   // the policy does not cover the access
	CodePolicyOrder   = "policy-order"         // a policy's version is not above the last one's
	CodePolicyBundle  = "policy-bundle"        // the exported bundle is not the one published
	CodeFailedOf      = "failed-without-read"  // access.failed names no earlier allowed access
	CodeFailedTwice   = "failed-twice"         // access.failed names one that has failed before
	CodeErased        = "subject-erased"       // allowed about a person who has been erased
	CodeRestricted    = "subject-restricted"   // allowed, other than by law, while processing was restricted
	CodeMembers       = "entry-members-absent" // an entry lacks what its kind is about
	CodeErasedTwice   = "erased-twice"         // a person is erased who has been before
	CodeDestroyedOf   = "destroyed-no-erasure" // a key is destroyed without an erasure of the same person before
	CodeKeyTwice      = "destroyed-twice"      // a key is destroyed that has been before
	CodeKeysLeft      = "keys-left"            // a rotation has ended with things left on older versions
	CodeKeysOrder     = "keys-order"           // a rotation goes back to an older version
	CodeKeysEvidence  = "keys-evidence"        // a rotation has ended without the sidecar's evidence, or that says something else
)

// Kinds that only replay needs to know: what may be evidence for the ground law.
const (
	kindOrderApproved  = "order.approved"
	kindRightRequested = "right.requested"
)

// replay follows the log entry by entry and rechecks each access against what the log said before it.
type replay struct {
	report   *Report
	policies Policies
	sidecars []note.Verifier // witness keys of sidecars, which make evidence; none: it is not checked

	consents   map[int64]consent     // by index of consent.given
	given      map[purposeKey]int64  // index of the last consent.given
	withdrawn  map[purposeKey]int64  // index of the last withdrawal
	published  map[int64]int64       // version: index of its policy.published
	altered    map[int64]bool        // versions whose exported bundle is not the published one
	latest     int64                 // version in force; 0: none yet
	lawful     map[int64]lawEvidence // by index of orders and requests
	erased     map[string]bool       // by subject_ref
	erasures   map[int64]erasing     // by index of subject.erased: those whose key is not destroyed yet
	destroyed  map[int64]bool        // indexes of subject.erased whose key is destroyed
	rotations  map[string]rotation   // by scope: the last one
	restricted map[string]bool       // by subject_ref
	allowed    bitset                // indexes of allowed accesses
	failed     bitset                // those of them that were not served
}

type (
	consentKey struct{ subject, id string }
	purposeKey struct{ subject, purpose string }
)

type consent struct {
	key    consentKey
	change ConsentChange
}

type lawEvidence struct{ kind, subject string }

// erasing is a subject.erased that waits for its key.destroyed.
type erasing struct{ subject, id string }

// rotation is how far the rotations of a scope have come.
type rotation struct {
	version uint64
	job     string
}

func newReplay(r *Report, p Policies, sidecars []note.Verifier) *replay {
	return &replay{
		report: r, policies: p, sidecars: sidecars,
		consents:   make(map[int64]consent),
		given:      make(map[purposeKey]int64),
		withdrawn:  make(map[purposeKey]int64),
		published:  make(map[int64]int64),
		altered:    make(map[int64]bool),
		lawful:     make(map[int64]lawEvidence),
		erased:     make(map[string]bool),
		erasures:   make(map[int64]erasing),
		destroyed:  make(map[int64]bool),
		rotations:  make(map[string]rotation),
		restricted: make(map[string]bool),
	}
}

func (r *replay) problem(index int64, code, format string, args ...any) {
	r.report.add(Problem{Index: index, Code: code, Detail: fmt.Sprintf(format, args...)})
}

// entry takes the next entry of the log.
func (r *replay) entry(index int64, e Entry) {
	switch e.Kind {
	case KindSubjectCreated, KindRecordWritten, KindRecordDeleted, KindConsentGiven, KindConsentWithdrawn,
		KindRestrictionSet, KindRestrictionLift:
		if r.erased[e.SubjectRef] {
			r.problem(index, CodeErased, "%s about a subject that has been erased", e.Kind)
		}
	}
	switch e.Kind {
	case KindAccess:
		r.access(index, e)
	case KindAccessFailed:
		r.accessFailed(index, e)
	case KindConsentGiven, KindConsentWithdrawn:
		r.consent(index, e)
	case KindPolicyPublished:
		r.policy(index, e)
	case KindSubjectErased:
		r.subjectErased(index, e)
	case KindKeyDestroyed:
		r.keyDestroyed(index, e)
	case KindKeyEpoch, KindKeyRotated:
		r.keys(index, e)
	case KindRecordResealed:
		r.resealed(index, e)
	case KindLedgerRestored:
		if e.Restored == nil || e.Restored.Size != index || e.Restored.Lost < index {
			r.problem(index, CodeMembers, "%s does not say what was restored, or not to here", e.Kind)
			return
		}
		r.report.Restores = append(r.report.Restores, Restore{index, *e.Restored})
	case KindRestrictionSet:
		r.restricted[e.SubjectRef] = true
	case KindRestrictionLift:
		delete(r.restricted, e.SubjectRef)
	case kindOrderApproved, kindRightRequested:
		r.lawful[index] = lawEvidence{e.Kind, e.SubjectRef}
	}
}

func (r *replay) consent(index int64, e Entry) {
	if e.Consent == nil || e.SubjectRef == "" {
		r.problem(index, CodeMembers, "%s names no consent or no subject", e.Kind)
		return
	}
	key := consentKey{e.SubjectRef, e.Consent.ID}
	if end := e.Consent.NotAfter; end != "" && !validTime(end) {
		r.problem(index, CodeMembers, "the end of the consent is not in the entry layout")
		return
	}
	if e.Kind == KindConsentGiven {
		r.consents[index] = consent{key, *e.Consent}
		r.given[purposeKey{e.SubjectRef, e.Consent.Purpose}] = index
	} else {
		r.withdrawn[purposeKey{e.SubjectRef, e.Consent.Purpose}] = index
	}
}

func (r *replay) policy(index int64, e Entry) {
	if e.Bundle == nil {
		r.problem(index, CodeMembers, "%s names no bundle", e.Kind)
		return
	}
	if e.Bundle.Version <= r.latest {
		r.problem(index, CodePolicyOrder, "version %d follows version %d", e.Bundle.Version, r.latest)
		return
	}
	r.latest = e.Bundle.Version
	r.published[r.latest] = index
}

func (r *replay) accessFailed(index int64, e Entry) {
	switch {
	case e.Of == nil || *e.Of < 0 || *e.Of >= index || !r.allowed.has(*e.Of):
		r.problem(index, CodeFailedOf, "it names no earlier allowed access")
	case r.failed.has(*e.Of):
		r.problem(index, CodeFailedTwice, "access %d has failed before", *e.Of)
	default:
		r.failed.add(*e.Of)
		r.report.Access.Failed++
		r.report.Access.Failures[e.Reason]++
	}
}

func (r *replay) subjectErased(index int64, e Entry) {
	counts := &r.report.Erasures
	counts.Erased++
	if e.SubjectRef == "" || e.Erasure == nil || e.Erasure.ID == "" || e.Erasure.Method == "" || e.Reason == "" {
		r.problem(index, CodeMembers, "%s does not say who was erased, why or how", e.Kind)
	}
	if e.SubjectRef == "" {
		return
	}
	if r.erased[e.SubjectRef] {
		r.problem(index, CodeErasedTwice, "the subject has been erased before")
		return
	}
	r.erased[e.SubjectRef] = true
	if e.Erasure != nil {
		r.erasures[index] = erasing{e.SubjectRef, e.Erasure.ID}
		counts.Pending++
	}
}

func (r *replay) keyDestroyed(index int64, e Entry) {
	counts := &r.report.Erasures
	counts.Destroyed++
	switch {
	case e.Erasure == nil || e.Erasure.ID == "" || e.Of == nil || e.SubjectRef == "":
		r.problem(index, CodeMembers, "%s does not say which key was destroyed", e.Kind)
	case r.destroyed[*e.Of]:
		r.problem(index, CodeKeyTwice, "the key of erasure %d has been destroyed before", *e.Of)
	case r.erasures[*e.Of] != erasing{e.SubjectRef, e.Erasure.ID}: // of a later one none is known yet
		r.problem(index, CodeDestroyedOf, "entry %d is no erasure of the same subject", *e.Of)
	default:
		if e.Erasure.DeadBy != "" && !validTime(e.Erasure.DeadBy) {
			r.problem(index, CodeMembers, "when backups are dead is not in the entry layout")
		}
		r.destroyed[*e.Of] = true
		delete(r.erasures, *e.Of)
		counts.Pending--
	}
}

// keys takes the evidence of a rotation. Versions of a scope only grow; the same one comes again for another
// phase of the same job.
func (r *replay) keys(index int64, e Entry) {
	k := e.Keys
	switch {
	case k == nil || k.Scope == "" || k.Job == "":
		r.problem(index, CodeMembers, "%s does not say what was rotated", e.Kind)
		return
	case e.Kind == KindKeyEpoch && (k.Scope != "kek" || k.Version == 0 || k.Phase != ""):
		r.problem(index, CodeMembers, "%s is not about a version of the KEK that everything is on", e.Kind)
		return
	case k.Started != "" && !validTime(k.Started), k.Finished != "" && !validTime(k.Finished):
		r.problem(index, CodeMembers, "a time of the rotation is not in the entry layout")
		return
	}
	counts := &r.report.Keys
	if e.Kind == KindKeyEpoch {
		counts.Epochs++
	} else if k.Phase == "" {
		counts.Rotations++
	}
	if k.Phase == "" {
		r.ended(index, k)
	}
	if k.Version == 0 {
		return
	}
	last := r.rotations[k.Scope]
	if k.Version < last.version || k.Version == last.version && k.Job != last.job {
		r.problem(index, CodeKeysOrder, "version %d of scope %s follows version %d", k.Version, k.Scope, last.version)
		return
	}
	r.rotations[k.Scope] = rotation{k.Version, k.Job}
}

// ended checks what is claimed at the end of a rotation. Evidence by a key of the sidecar that was not given is left
// open: the witness may have had others.
func (r *replay) ended(index int64, k *KeyChange) {
	if k.Left != 0 {
		r.problem(index, CodeKeysLeft, "%d left on older versions when job %s of scope %s ended", k.Left, k.Job, k.Scope)
	}
	if len(r.sidecars) == 0 {
		return
	}
	switch _, err := k.CheckEvidence(r.sidecars...); {
	case err == nil:
		r.report.Keys.Proven++
	case !errors.Is(err, ErrEvidenceKey):
		r.problem(index, CodeKeysEvidence, "job %s of scope %s: %v", k.Job, k.Scope, err)
	}
}

func (r *replay) resealed(index int64, e Entry) {
	if len(e.Resealed) == 0 {
		r.problem(index, CodeMembers, "%s names no records", e.Kind)
	}
	for _, s := range e.Resealed {
		if _, err := ParseRef(s.SubjectRef); err != nil {
			r.problem(index, CodeMembers, "%s names no subject", e.Kind)
			return
		}
		if r.erased[s.SubjectRef] {
			r.problem(index, CodeErased, "%s about a subject that has been erased", e.Kind)
			return
		}
	}
	r.report.Keys.Resealed += int64(len(e.Resealed))
}

func (r *replay) access(index int64, e Entry) {
	counts := &r.report.Access
	ground := counts.Grounds[e.Ground]
	defer func() { counts.Grounds[e.Ground] = ground }()
	switch e.Decision {
	case Deny:
		counts.Denied++
		ground.Denied++
		counts.Denials[e.Reason]++
		return
	case Allow:
		counts.Allowed++
		ground.Allowed++
		r.allowed.add(index)
	default:
		r.problem(index, CodeDecision, "decision %q", e.Decision)
		return
	}
	before := r.report.Found
	r.standing(index, e)
	partly := false
	switch {
	case e.Evidence == nil:
		r.problem(index, CodeEvidence, "there is none")
	case e.Evidence.Entry < 0 || e.Evidence.Entry >= index:
		r.problem(index, CodeEvidence, "it names entry %d, which is not earlier", e.Evidence.Entry)
	case e.Ground == GroundConsent:
		partly = r.byConsent(index, e)
	case e.Ground == GroundService:
		partly = r.byService(index, e)
	case e.Ground == GroundLaw:
		partly = r.byLaw(index, e)
	default:
		r.problem(index, CodeGround, "ground %q", e.Ground)
	}
	switch {
	case r.report.Found > before:
		counts.Refuted++
		ground.Refuted++
	case partly:
		counts.Partly++
		ground.Partly++
	default:
		counts.Rechecked++
		ground.Rechecked++
	}
}

// standing checks what no ground overrides.
func (r *replay) standing(index int64, e Entry) {
	if e.Policy == 0 || e.Policy != r.latest {
		r.problem(index, CodePolicyVersion, "decided by version %d, in force was %d", e.Policy, r.latest)
	}
	if e.SubjectRef == "" {
		// A search that finds nobody is about nobody; anything else is about somebody.
		if e.Mode != ModeLookup {
			r.problem(index, CodeMembers, "it names no subject")
		}
		return
	}
	if r.erased[e.SubjectRef] {
		r.problem(index, CodeErased, "the subject was erased before")
	}
	if r.restricted[e.SubjectRef] && e.Ground != GroundLaw {
		r.problem(index, CodeRestricted, "processing was restricted")
	}
}

// byConsent, byService and byLaw recheck one ground each. They report whether the policy's part was left out,
// since its bundle is not there to be asked.
func (r *replay) byConsent(index int64, e Entry) (partly bool) {
	c, found := r.consents[e.Evidence.Entry]
	switch {
	case e.Evidence.Type != EvidenceConsent || !found:
		r.problem(index, CodeEvidence, "entry %d is no consent", e.Evidence.Entry)
		return false
	case e.SubjectRef == "" || c.key != consentKey{e.SubjectRef, e.Evidence.ID}:
		r.problem(index, CodeEvidence, "entry %d is another consent, or another subject's", e.Evidence.Entry)
		return false
	}
	before := r.report.Found
	if err := c.change.covers(e); err != nil {
		r.problem(index, CodeConsent, "%v", err)
	}
	// Withdrawing ends every consent for the purpose that was given before, whichever of them was named.
	if at := r.withdrawn[purposeKey{e.SubjectRef, c.change.Purpose}]; at > e.Evidence.Entry {
		r.problem(index, CodeWithdrawn, "by entry %d", at)
	}
	// Giving again ends what was given before, whatever became of the new consent.
	if at := r.given[purposeKey{e.SubjectRef, c.change.Purpose}]; at > e.Evidence.Entry {
		r.problem(index, CodeInvalidated, "by entry %d", at)
	}
	// NotAfter is in the layout of all times in entries, which sorts as text; the end is exclusive.
	if end := c.change.NotAfter; end != "" && e.Time >= end {
		r.problem(index, CodeExpired, "at %s", end)
	}
	if r.report.Found > before {
		return false // the policy would only say so again
	}
	return r.byPolicy(index, e, &c.change)
}

// covers tells whether a consent is one for this access. It does not look at time.
func (c ConsentChange) covers(e Entry) error {
	if c.State != "ConsentGiven" && c.State != "RenewedConsentGiven" {
		return fmt.Errorf("its state is %q", c.State)
	}
	if c.Purpose != e.Purpose {
		return errors.New("it is for another purpose")
	}
	if len(e.Fields) == 0 {
		return errors.New("the access names no fields")
	}
	for _, f := range e.Fields {
		// A consent names fields across collections, an access those of one.
		if f = e.Collection + "." + f; !slices.Contains(c.Fields, f) {
			return fmt.Errorf("it does not name the field %q", f)
		}
	}
	if e.Caller == nil || !slices.Contains(c.Recipients, e.Caller.ID) {
		return errors.New("it does not name the recipient")
	}
	if !c.SeparateDocument {
		return errors.New("it was not given apart from other matters")
	}
	return nil
}

func (r *replay) byService(index int64, e Entry) (partly bool) {
	at, found := r.published[e.Policy]
	if (e.Evidence.Type != EvidencePurpose && e.Evidence.Type != EvidenceAgreement) || !found || at != e.Evidence.Entry {
		r.problem(index, CodeEvidence, "entry %d does not publish version %d of the policy", e.Evidence.Entry, e.Policy)
		return false
	}
	return r.byPolicy(index, e, nil)
}

func (r *replay) byLaw(index int64, e Entry) (partly bool) {
	l, found := r.lawful[e.Evidence.Entry]
	switch {
	case !found:
		r.problem(index, CodeEvidence, "entry %d is neither an approved order nor a request", e.Evidence.Entry)
		return false
	case l.kind == kindRightRequested && (e.SubjectRef == "" || l.subject != e.SubjectRef):
		r.problem(index, CodeEvidence, "entry %d is the request of another subject", e.Evidence.Entry)
		return false
	}
	return r.byPolicy(index, e, nil)
}

// byPolicy asks the version that decided. It reports whether it could not be asked.
func (r *replay) byPolicy(index int64, e Entry, c *ConsentChange) (partly bool) {
	at, found := r.published[e.Policy]
	switch {
	case !found:
		return false // a problem already, since it is not the version in force
	case r.policies == nil || r.altered[e.Policy]:
		return true
	}
	switch err := r.policies.Covers(e.Policy, e, Given{at, c}); {
	case errors.Is(err, ErrNoBundle):
		return true
	case err != nil:
		r.problem(index, CodeNotCovered, "version %d: %v", e.Policy, err)
	}
	return false
}

// BundlePath is where an exported log has the policy bundle of a version.
func BundlePath(version int64) string { return fmt.Sprintf("policy/%d.json", version) }

// checkBundle compares an exported policy bundle with the hash that was published. An absent bundle is no
// problem of the log: what it decided is then rechecked in part only.
func (v *logVerifier) checkBundle(index int64, b *BundleChange) error {
	data, err := fs.ReadFile(v.dir, BundlePath(b.Version))
	if errors.Is(err, fs.ErrNotExist) {
		v.report.Absent = append(v.report.Absent, b.Version)
		return nil
	} else if err != nil {
		return fmt.Errorf("reading policy %d: %w", b.Version, err)
	}
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != b.SHA256 {
		v.replay.altered[b.Version] = true
		v.report.add(Problem{index, CodePolicyBundle, BundlePath(b.Version) + " is not the bundle that was published"})
		return nil
	}
	v.report.Policies++
	return nil
}

// bitset is a set of indexes, at one bit for each entry of the log.
type bitset []uint64

func (b *bitset) add(i int64) {
	for int64(len(*b)) <= i/64 {
		*b = append(*b, 0)
	}
	(*b)[i/64] |= 1 << (i % 64)
}

func (b bitset) has(i int64) bool { return i/64 < int64(len(b)) && b[i/64]&(1<<(i%64)) != 0 }
