package verify

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"
)

// Policies tells whether a version of the policy covers an access that was allowed with ground service:
// its purpose, its caller, its agreement at that time and its fields. The error says what is not covered.
type Policies interface {
	Covers(version int64, e Entry) error
}

// Codes of problems with what entries say. The log itself is as it was signed.
const (
	CodeDecision      = "decision"             // an access is neither allowed nor denied
	CodeGround        = "ground"               // allowed with no ground, or one that does not exist
	CodeEvidence      = "evidence"             // no evidence, or it names no earlier entry of the right kind
	CodeConsent       = "consent"              // the consent does not cover the access
	CodeWithdrawn     = "consent-withdrawn"    // the consent was withdrawn before
	CodeExpired       = "consent-expired"      // the consent was over
	CodePolicyVersion = "policy-version"       // not the policy in force
	CodeNotCovered    = "policy-not-covered"   // the policy does not cover the access
	CodePolicyOrder   = "policy-order"         // a policy's version is not above the last one's
	CodePolicyBundle  = "policy-bundle"        // the exported bundle is not the one published
	CodeFailedOf      = "failed-without-read"  // access.failed names no earlier allowed access
	CodeFailedTwice   = "failed-twice"         // access.failed names one that has failed before
	CodeErased        = "subject-erased"       // allowed about a person who has been erased
	CodeRestricted    = "subject-restricted"   // allowed, other than by law, while processing was restricted
	CodeMembers       = "entry-members-absent" // an entry lacks what its kind is about
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

	consents   map[int64]consent     // by index of consent.given
	withdrawn  map[consentKey]int64  // index of the last withdrawal
	published  map[int64]int64       // index of policy.published: its version
	latest     int64                 // version in force; 0: none yet
	lawful     map[int64]lawEvidence // by index of orders and requests
	erased     map[string]bool       // by subject_ref
	restricted map[string]bool       // by subject_ref
	allowed    bitset                // indexes of allowed accesses
	failed     bitset                // those of them that were not served
}

type consentKey struct{ subject, id string }

type consent struct {
	key    consentKey
	change ConsentChange
}

type lawEvidence struct{ kind, subject string }

func newReplay(r *Report, p Policies) *replay {
	return &replay{
		report: r, policies: p,
		consents:   make(map[int64]consent),
		withdrawn:  make(map[consentKey]int64),
		published:  make(map[int64]int64),
		lawful:     make(map[int64]lawEvidence),
		erased:     make(map[string]bool),
		restricted: make(map[string]bool),
	}
}

func (r *replay) problem(index int64, code, format string, args ...any) {
	r.report.add(Problem{Index: index, Code: code, Detail: fmt.Sprintf(format, args...)})
}

// entry takes the next entry of the log.
func (r *replay) entry(index int64, e Entry) {
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
		r.erased[e.SubjectRef] = true
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
	} else {
		r.withdrawn[key] = index
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
	r.published[index] = r.latest
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
	}
}

func (r *replay) access(index int64, e Entry) {
	counts := &r.report.Access
	switch e.Decision {
	case Deny:
		counts.Denied++
		return
	case Allow:
		counts.Allowed++
		counts.Grounds[e.Ground]++
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
		r.byConsent(index, e)
	case e.Ground == GroundService:
		partly = r.byService(index, e)
	case e.Ground == GroundLaw:
		r.byLaw(index, e)
	default:
		r.problem(index, CodeGround, "ground %q", e.Ground)
	}
	switch {
	case r.report.Found > before:
	case partly:
		counts.Partly++
	default:
		counts.Rechecked++
	}
}

// standing checks what no ground overrides.
func (r *replay) standing(index int64, e Entry) {
	if e.Policy == 0 || e.Policy != r.latest {
		r.problem(index, CodePolicyVersion, "decided by version %d, in force was %d", e.Policy, r.latest)
	}
	if e.SubjectRef == "" {
		return
	}
	if r.erased[e.SubjectRef] {
		r.problem(index, CodeErased, "the subject was erased before")
	}
	if r.restricted[e.SubjectRef] && e.Ground != GroundLaw {
		r.problem(index, CodeRestricted, "processing was restricted")
	}
}

func (r *replay) byConsent(index int64, e Entry) {
	c, found := r.consents[e.Evidence.Entry]
	switch {
	case e.Evidence.Type != EvidenceConsent || !found:
		r.problem(index, CodeEvidence, "entry %d is no consent", e.Evidence.Entry)
		return
	case e.SubjectRef == "" || c.key != consentKey{e.SubjectRef, e.Evidence.ID}:
		r.problem(index, CodeEvidence, "entry %d is another consent, or another subject's", e.Evidence.Entry)
		return
	}
	if err := c.change.covers(e); err != nil {
		r.problem(index, CodeConsent, "%v", err)
	}
	if at, ok := r.withdrawn[c.key]; ok && at > e.Evidence.Entry {
		r.problem(index, CodeWithdrawn, "by entry %d", at)
	}
	// NotAfter is in the layout of all times in entries, which sorts as text; the end is exclusive.
	if end := c.change.NotAfter; end != "" && e.Time >= end {
		r.problem(index, CodeExpired, "at %s", end)
	}
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
		if !slices.Contains(c.Fields, f) {
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

// byService reports whether a part was left out because there are no policies to replay with.
func (r *replay) byService(index int64, e Entry) (partly bool) {
	version, found := r.published[e.Evidence.Entry]
	switch {
	case (e.Evidence.Type != EvidencePurpose && e.Evidence.Type != EvidenceAgreement) || !found:
		r.problem(index, CodeEvidence, "entry %d publishes no policy", e.Evidence.Entry)
	case version != e.Policy:
		r.problem(index, CodeEvidence, "entry %d publishes version %d", e.Evidence.Entry, version)
	case r.policies == nil:
		return true
	default:
		if err := r.policies.Covers(version, e); err != nil {
			r.problem(index, CodeNotCovered, "version %d: %v", version, err)
		}
	}
	return false
}

func (r *replay) byLaw(index int64, e Entry) {
	l, found := r.lawful[e.Evidence.Entry]
	switch {
	case !found:
		r.problem(index, CodeEvidence, "entry %d is neither an approved order nor a request", e.Evidence.Entry)
	case l.kind == kindRightRequested && (e.SubjectRef == "" || l.subject != e.SubjectRef):
		r.problem(index, CodeEvidence, "entry %d is the request of another subject", e.Evidence.Entry)
	}
}

// BundlePath is where an exported log has the policy bundle of a version.
func BundlePath(version int64) string { return fmt.Sprintf("policy/%d.json", version) }

// checkBundle compares an exported policy bundle with the hash that was published. An absent bundle is no
// problem of the log: what needs it says so.
func (v *logVerifier) checkBundle(index int64, b *BundleChange) error {
	data, err := fs.ReadFile(v.dir, BundlePath(b.Version))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("reading policy %d: %w", b.Version, err)
	}
	v.report.Policies++
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != b.SHA256 {
		v.report.add(Problem{index, CodePolicyBundle, BundlePath(b.Version) + " is not the bundle that was published"})
	}
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
