// Package traffic builds the requests that benchmarks send to a pdvault: creates, reads on each ground, batches,
// lookups, verifications, and a mix.
//
// It must never send a request that a client of production would not send, and its people are made up.
package traffic

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prototypster/pdvault/test/bench/load"
)

// MaxPeople is how many people have values of their own, which indexed fields need.
const MaxPeople = 7_900_000

// WarmPeople is how many people's keys are sure to fit the sidecar's cache, which holds 10,000.
const WarmPeople = 8000

// Target is a pdvault, and the people that were created there. Its methods may be called from many goroutines, but
// Fill and Ask only while nothing else creates.
type Target struct {
	Address string // host:port on loopback
	Token   string // of a caller with the role service
	First   int64  // number of the first person to create

	mu     sync.Mutex // guards people and next
	people []Person
	next   int64 // people that were tried to be created

	asked int // so many of people, the first ones, have consented
}

// Person is somebody who was created. N says what their record holds.
type Person struct {
	ID string
	N  int64
}

// People are those that were created so far.
func (t *Target) People() []Person {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clip(t.people)
}

// Kinds of requests.
const (
	Warm    = "warm"    // reads of people whose keys fit the sidecar's cache
	Cold    = "cold"    // reads of everybody in turn: with more people than fit the cache, each key is unwrapped anew
	Write   = "write"   // creates
	Batch   = "batch"   // reads of BatchSize people in one request
	Lookup  = "lookup"  // who has this value
	Verify  = "verify"  // does this person have this value
	Mixed   = "mixed"   // nine warm reads, then a create
	Service = "service" // warm reads of two fields on the ground service
	Consent = "consent" // of the same fields on the ground consent, of people who were asked for it with Ask
)

// Kinds are all of them. The ground law is not among them: pdvault does not serve it yet.
var Kinds = []string{Warm, Cold, Write, Batch, Lookup, Verify, Mixed, Service, Consent}

// BatchSize is how many people a request of the kind Batch reads.
const BatchSize = 100

// Records is how many records one request of kind is about.
func Records(kind string) int {
	if kind == Batch {
		return BatchSize
	}
	return 1
}

// Load is a run of kind, without its bounds.
func (t *Target) Load(kind string) (load.Config, error) {
	c := load.Config{Address: t.Address}
	all := t.People()
	if len(all) == 0 && kind != Write {
		return c, errors.New("traffic: nobody was created yet")
	}
	warm := all[:min(len(all), WarmPeople)]
	if kind == Consent {
		if t.asked == 0 {
			return c, errors.New("traffic: nobody was asked for a consent")
		}
		warm = all[:t.asked]
	}
	spread := func(n int64) Person { return warm[int(n*7919)%len(warm)] }
	read := func(query string) func(int64, []byte) []byte {
		return func(n int64, buf []byte) []byte { return t.Read(buf, spread(n).ID, query) }
	}
	switch kind {
	case Warm:
		c.Request = read("purpose=account")
	case Cold:
		c.Request = func(n int64, buf []byte) []byte { return t.Read(buf, all[int(n)%len(all)].ID, "purpose=account") }
	case Service:
		c.Request = read("purpose=account&fields=email,name")
	case Consent:
		c.Request = read("purpose=newsletter&fields=email,name")
	case Write:
		create, created := t.creates()
		c.Request, c.Answered = create, created
	case Mixed:
		create, created := t.creates()
		c.Request = func(n int64, buf []byte) []byte {
			if n%10 == 9 {
				return create(n/10, buf)
			}
			return t.Read(buf, spread(n).ID, "purpose=account")
		}
		c.Answered = func(n int64, status int, body []byte) {
			if n%10 == 9 {
				created(n/10, status, body)
			}
		}
	case Lookup:
		c.Good = contains(`"subjects":["`)
		c.Request = func(n int64, buf []byte) []byte {
			return t.Post(buf, "/v1/lookups", fmt.Appendf(nil,
				`{"purpose":"order-fulfilment","collection":"profile","field":"email","value":%q}`, email(spread(n).N)))
		}
	case Verify:
		c.Good = contains(`"match":true`)
		c.Request = func(n int64, buf []byte) []byte {
			p := spread(n)
			return t.Post(buf, "/v1/verifications", fmt.Appendf(nil,
				`{"purpose":"account","subject":%q,"collection":"profile","field":"email","value":%q}`, p.ID, email(p.N)))
		}
	case Batch:
		// A batch of which some reads are refused has the status 200.
		c.Good = func(body []byte) bool { return !bytes.Contains(body, []byte(`"problem":`)) }
		bodies := t.batches(warm)
		c.Request = func(n int64, _ []byte) []byte { return bodies[n%int64(len(bodies))] }
	default:
		return c, fmt.Errorf("traffic: %q is not one of %s", kind, strings.Join(Kinds, ", "))
	}
	return c, nil
}

func contains(part string) func([]byte) bool {
	return func(body []byte) bool { return bytes.Contains(body, []byte(part)) }
}

// creates makes requests that create people who were not there before, and keeps who was created.
func (t *Target) creates() (request func(int64, []byte) []byte, answered func(int64, int, []byte)) {
	t.mu.Lock()
	base := t.next
	t.mu.Unlock()
	request = func(n int64, buf []byte) []byte {
		return t.Post(buf, "/v1/subjects", Record(t.First+base+n))
	}
	answered = func(n int64, status int, body []byte) {
		_, after, _ := bytes.Cut(body, []byte(`"id":"`))
		id, _, found := bytes.Cut(after, []byte(`"`))
		t.mu.Lock()
		defer t.mu.Unlock()
		t.next = max(t.next, base+n+1)
		if status == 201 && found {
			t.people = append(t.people, Person{ID: string(id), N: t.First + base + n})
		}
	}
	return request, answered
}

// Fill creates people until there are n.
func (t *Target) Fill(n int, within time.Duration) error {
	missing := n - len(t.People())
	if missing <= 0 {
		return nil
	}
	c, err := t.Load(Write)
	if err != nil {
		return err
	}
	c.Connections, c.Duration, c.Count = 128, within, int64(missing)
	r, err := load.Run(c)
	if err != nil {
		return fmt.Errorf("creating people: %w", err)
	}
	if r.Requests < int64(missing) {
		return fmt.Errorf("creating people: %d of %d were not created within %v", int64(missing)-r.Requests, missing, within)
	}
	return nil
}

// Ask records a consent of those who were created so far, of WarmPeople at most. Only they are read by Consent.
func (t *Target) Ask(within time.Duration) error {
	people := t.People()
	people = people[:min(len(people), WarmPeople)]
	r, err := load.Run(load.Config{
		Address: t.Address, Connections: 32, Duration: within, Count: int64(len(people)),
		Request: func(n int64, buf []byte) []byte {
			return t.Post(buf, "/v1/subjects/"+people[n].ID+"/consents", []byte(`{"purpose":"newsletter","separate_document":true}`))
		},
	})
	if err != nil {
		return fmt.Errorf("asking for consents: %w", err)
	}
	if r.Requests < int64(len(people)) {
		return fmt.Errorf("asking for consents: %d of %d were not recorded", int64(len(people))-r.Requests, len(people))
	}
	t.asked = len(people)
	return nil
}

// Read appends a request that reads a profile.
func (t *Target) Read(buf []byte, id, query string) []byte {
	buf = append(buf, "GET /v1/subjects/"...)
	buf = append(buf, id...)
	buf = append(buf, "/records/profile?"...)
	buf = append(buf, query...)
	buf = append(buf, " HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "...)
	buf = append(buf, t.Token...)
	return append(buf, "\r\n\r\n"...)
}

// Post appends a request with a body.
func (t *Target) Post(buf []byte, path string, body []byte) []byte {
	buf = fmt.Appendf(buf, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n",
		path, t.Token, len(body))
	return append(buf, body...)
}

// batches are requests of the kind Batch, in which everybody of people comes up.
func (t *Target) batches(people []Person) [][]byte {
	type read struct {
		Subject    string `json:"subject"`
		Collection string `json:"collection"`
	}
	requests := make([][]byte, max(1, (len(people)+BatchSize-1)/BatchSize))
	for i := range requests {
		reads := make([]read, BatchSize)
		for j := range reads {
			reads[j] = read{people[(i*BatchSize+j)%len(people)].ID, "profile"}
		}
		body, err := json.Marshal(map[string]any{"purpose": "account", "reads": reads})
		if err != nil {
			panic("traffic: encoding strings: " + err.Error())
		}
		requests[i] = t.Post(nil, "/v1/reads", body)
	}
	return requests
}

// Record is the body that creates person n, with six fields.
func Record(n int64) []byte {
	return fmt.Appendf(nil, `{"records":{"profile":%s}}`, Profile(n))
}

// Profile is the record of person n.
func Profile(n int64) []byte {
	return fmt.Appendf(nil, `{"email":%q,"phone":"+1212%07d","name":{"givenName":"Given","familyName":"Family %d"},`+
		`"address":{"streetAddress":"%d Long Street","locality":"Town","postalCode":"10001","country":"US"},"birthdate":"1980-01-02","locale":"en-US"}`,
		email(n), 2_000_000+n, n, n)
}

func email(n int64) string { return fmt.Sprintf("p%d@example.org", n) }
