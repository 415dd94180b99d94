package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// marker is in every attack, and must be in no answer and no log.
const marker = "Marker7f3aVault"

// attack is one thing that no client of good will sends.
type attack struct {
	name   string
	pieces []string
	// status is what it may be answered with; 0: the connection is closed without an answer.
	status []int
	// text says that net/http refuses the head itself, with a line of text instead of a problem.
	text bool
}

// post is a request with a body, of the shop.
func (i *instance) post(path, body string, lines ...string) []string {
	if len(lines) == 0 {
		lines = []string{"Content-Type: application/json\r\n"}
	}
	return []string{i.authorised("shop", "POST "+path, strings.Join(lines, "")+fmt.Sprintf("Content-Length: %d\r\n", len(body))), body}
}

func (i *instance) bodies(subject string) []attack {
	read := func(purpose string) string {
		return `{` + purpose + `,"reads":[{"subject":"` + subject + `","collection":"profile","fields":["email"]}]}`
	}
	record := func(fields string) string {
		return `{"records":{"profile":{"displayName":"` + marker + `"` + fields + `}}}`
	}
	deep := func(open, end string) string {
		return record(`,"x":` + strings.Repeat(open, 10_000) + "1" + strings.Repeat(end, 10_000))
	}
	many := `{"records":{"profile":{"displayName":"` + marker + `"`
	for n := range 20_000 {
		many += fmt.Sprintf(`,"m%d":1`, n)
	}
	invalid := []int{http.StatusBadRequest}
	var out []attack
	add := func(name, path, body string) {
		out = append(out, attack{name: name, pieces: i.post(path, body), status: invalid})
	}
	for name, purpose := range map[string]string{
		"purpose twice":                         `"purpose":"newsletter","purpose":"order-fulfilment"`,
		"purpose in two cases":                  `"purpose":"newsletter","PURPOSE":"order-fulfilment"`,
		"purpose in two cases, the other first": `"Purpose":"newsletter","purpose":"order-fulfilment"`,
		"purpose twice, once escaped":           `"purpose":"newsletter","purpos\u0065":"order-fulfilment"`,
		"purpose with a Kelvin sign":            "\"purpose\":\"order-fulfilment\",\"\u212aey\":\"" + marker + `"`,
	} {
		add(name, "/v1/reads", read(purpose))
	}
	for name, body := range map[string]string{
		"10,000 objects deep":        deep(`{"a":`, "}"),
		"10,000 arrays deep":         deep(`[`, "]"),
		"10,000 deep, never shut":    `{"records":` + strings.Repeat(`[`, 10_000),
		"1e400":                      record(`,"x":1e400`),
		"-1e400":                     record(`,"x":-1e400`),
		"2^53+1":                     record(`,"x":9007199254740993`),
		"a number of 100,000 digits": record(`,"x":` + strings.Repeat("9", 60_000)),
		"NaN":                        record(`,"x":NaN`),
		"octal":                      record(`,"x":017`),
		"lone surrogate":             record(`,"x":"\ud800"`),
		"overlong UTF-8":             record(",\"x\":\"\xc0\xaf\""),
		"byte-order mark":            "\xef\xbb\xbf" + record(""),
		"UTF-16":                     "\xff\xfe{\x00}\x00",
		"control character":          record(",\"x\":\"a\x01b\""),
		"trailing NUL":               record("") + "\x00",
		"trailing bracket":           record("") + "}",
		"trailing comment":           record("") + "// " + marker,
		"trailing value":             record("") + ` "` + marker + `"`,
		"comma too many":             `{"records":{"profile":{"displayName":"` + marker + `",}}}`,
		"20,000 members":             many + "}}}",
		"a string of 100 KB":         record(`,"x":"` + strings.Repeat("x", 100<<10) + `"`),
	} {
		add(name, "/v1/subjects", body)
	}
	return append(out,
		attack{name: "two media types", status: []int{415}, pieces: i.post("/v1/subjects", record(""), "Content-Type: application/json\r\n", "Content-Type: text/plain\r\n")},
		attack{name: "another charset", status: []int{415}, pieces: i.post("/v1/subjects", record(""), "Content-Type: application/json; charset=utf-16\r\n")},
		attack{name: "a form", status: []int{415}, pieces: i.post("/v1/subjects", "records="+marker, "Content-Type: application/x-www-form-urlencoded\r\n")},
		attack{name: "compressed", status: []int{415}, pieces: i.post("/v1/subjects", record(""), "Content-Type: application/json\r\n", "Content-Encoding: gzip\r\n")},
	)
}

func (i *instance) framings(subject string) []attack {
	refused := []int{http.StatusBadRequest, http.StatusNotImplemented, 0}
	object := `{"records":{"profile":{"displayName":"` + marker + `"}}}`
	framed := func(name, lines, body string) attack {
		return attack{name: name, status: refused, text: true, pieces: []string{i.authorised("shop", "POST /v1/subjects", "Content-Type: application/json\r\n"+lines), body}}
	}
	raw := func(name, request string, status ...int) attack {
		return attack{name: name, status: status, text: true, pieces: []string{request}}
	}
	length := fmt.Sprintf("Content-Length: %d\r\n", len(object))
	chunk := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(object), object)
	chunked := "Transfer-Encoding: chunked\r\n"
	return []attack{
		framed("a length and chunks", length+chunked, "1\r\n{\r\n0\r\n\r\n"+marker),
		framed("chunks and a length", chunked+length, "1\r\n{\r\n0\r\n\r\n"+marker),
		framed("two lengths", length+"Content-Length: 1\r\n", object),
		framed("two lengths in one", fmt.Sprintf("Content-Length: %d, 1\r\n", len(object)), object),
		framed("signed length", fmt.Sprintf("Content-Length: +%d\r\n", len(object)), object),
		framed("negative length", "Content-Length: -1\r\n", object),
		framed("length in hex", "Content-Length: 0x10\r\n", object),
		framed("length beyond 64 bits", "Content-Length: 18446744073709551617\r\n", object),
		framed("space before the colon", "Content-Length : 3\r\n", object),
		framed("chunked twice", chunked+chunked, chunk),
		framed("chunked, then identity", "Transfer-Encoding: chunked, identity\r\n", chunk),
		framed("unknown coding", "Transfer-Encoding: "+marker+"\r\n", chunk),
		framed("size of a chunk with a lone LF", chunked, strings.Replace(chunk, "\r\n", "\n", 1)),
		framed("size of a chunk that is none", chunked, marker+"\r\n"+object+"\r\n0\r\n\r\n"),
		framed("size of a chunk beyond 64 bits", chunked, "11111111111111111\r\n"+object),
		framed("extension of a chunk without end", chunked, "1;"+strings.Repeat(marker, 20_000)),
		framed("chunks that stop in the middle", chunked, "ffff\r\n"+object+"\r\n"),
		framed("carriage return in a header", "Access-Reference: a\rb"+marker+"\r\n", ""),
		framed("NUL in a header", "Access-Reference: a\x00"+marker+"\r\n", ""),
		framed("name of a header with a space", "Access Reference: "+marker+"\r\n", ""),
		framed("header without a colon", marker+"\r\n", ""),
		raw("folded line at the beginning", "GET /v1/policy HTTP/1.1\r\n Host: pdvault\r\nX: "+marker+"\r\n\r\n", 400),
		raw("no host", "GET /v1/policy HTTP/1.1\r\nX: "+marker+"\r\n\r\n", 400),
		raw("two hosts", "GET /v1/policy HTTP/1.1\r\nHost: a\r\nHost: "+marker+"\r\n\r\n", 400),
		raw("a host that is none", "GET /v1/policy HTTP/1.1\r\nHost: a b/"+marker+"\r\n\r\n", 400),
		raw("no version", "GET /"+marker+"\r\n\r\n", 400),
		raw("version 3", "GET /"+marker+" HTTP/3.0\r\nHost: x\r\n\r\n", 505),
		raw("HTTP/2 without TLS", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"+marker, 400, 404, 405, 505, 0),
		raw("TLS", "\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03"+marker+"\r\n\r\n", 400, 0),
		raw("not HTTP at all", strings.Repeat(marker+"\r\n", 100)+"\r\n", 400, 0),
		raw("space in the path", i.authorised("shop", "GET /v1/ "+marker, ""), 400),
		raw("5,000 headers", i.authorised("shop", "GET /v1/policy", strings.Repeat("X-"+marker+": 1\r\n", 5000)), 431),
		raw("a header of 1 MB", i.authorised("shop", "GET /v1/policy", "X: "+strings.Repeat(marker, 70_000)+"\r\n"), 431),
		raw("a path of 1 MB", i.authorised("shop", "GET /"+strings.Repeat(marker, 70_000), ""), 431),
		raw("an expectation that is none", i.authorised("shop", "POST /v1/subjects", "Expect: "+marker+"\r\nContent-Length: 1\r\n"), 417),
		{name: "half a head, then the end", status: []int{400, 0}, text: true, pieces: []string{"GET /v1/policy HTTP/1.1\r\nX: " + marker, halfClose}},
		{name: "half a body, then the end", status: []int{400, 499, 0}, pieces: []string{i.authorised("shop", "POST /v1/subjects", "Content-Type: application/json\r\nContent-Length: 1000\r\n"), object, halfClose}},
		{name: "nothing, then the end", status: []int{0}, pieces: []string{halfClose}},
	}
}

func (i *instance) paths(subject string) []attack {
	record := "/v1/subjects/" + subject + "/records/profile?purpose=order-fulfilment"
	get := func(name, path string, status ...int) attack {
		return attack{name: name, status: status, pieces: []string{i.authorised("auditor", "GET "+path, "")}}
	}
	line := func(name, line, lines string, status ...int) attack {
		return attack{name: name, status: status, pieces: []string{i.authorised("shop", line, lines)}}
	}
	return []attack{
		get("dots, escaped", "/log/tile/..%2f..%2f"+marker, 400, 404),
		get("dots", "/log/tile/../../../../etc/"+marker, 400, 404),
		get("escaped dots", "/log/tile/%2e%2e/%2e%2e/"+marker, 400, 404),
		get("NUL in a tile", "/log/tile/0/%00"+marker, 400, 404),
		get("line break in a tile", "/log/tile/0/%0d%0aX:"+marker, 400, 404),
		get("doubly escaped", "/log/tile/%252e%252e%252f"+marker, 400, 404),
		get("backslash", "/log/tile/..%5c..%5c"+marker, 400, 404),
		line("dots for an id", "GET /v1/subjects/..%2f"+marker, "", 400, 404),
		line("NUL after an id", "GET /v1/subjects/"+subject+"%00"+marker, "", 400),
		line("line break after an id", "GET /v1/subjects/"+subject+"%0d%0aSet-Cookie:"+marker, "", 400),
		line("id in braces", "GET /v1/subjects/%7b"+subject+"%7d", "", 400),
		line("id as a URN", "GET /v1/subjects/urn:uuid:"+subject, "", 400),
		line("matrix parameter", "GET /v1/subjects/"+subject+";x="+marker, "", 400),
		line("two slashes", "GET /v1//subjects/"+subject, "", 400, 404),
		line("slash at the end", "GET /v1/subjects/"+subject+"/", "", 400, 404),
		line("path in another case", "GET /V1/subjects/"+subject, "", 404),
		line("path of a collection with dots", "GET /v1/subjects/"+subject+"/records/..%2f"+marker, "", 400, 404),
		line("line break in the query", "GET "+record+"%0d%0aSet-Cookie:%20"+marker, "", 400),
		line("parameter by another name", "GET "+record+"&purpos%65=newsletter", "", 400),
		line("parameter with a semicolon", "GET "+record+";purpose=newsletter", "", 400, 403),
		line("escape that is none", "GET "+record+"&fields=%zz"+marker, "", 400),
		line("override by header", "POST /v1/subjects/"+subject, "X-HTTP-Method-Override: DELETE\r\nX-Method-Override: DELETE\r\nX-HTTP-Method: DELETE\r\nContent-Length: 0\r\n", 405),
		line("override by parameter", "POST /v1/subjects?_method=DELETE", "Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}", 400),
		line("override of a read", "GET /v1/subjects/"+subject+"?_method=DELETE", "X-HTTP-Method-Override: DELETE\r\n", 400),
		line("TRACE", "TRACE /v1/policy", "X: "+marker+"\r\n", 404, 405),
		line("CONNECT", "CONNECT pdvault:443", "", 400, 404, 405),
		line("OPTIONS", "OPTIONS *", "X: "+marker+"\r\n", 404, 405),
		line("HEAD", "HEAD "+record, "", 405),
		line("unknown method", marker+" /v1/policy", "", 404, 405),
		line("method in lower case", "get /v1/policy", "", 404, 405),
		line("If-Match with a list", "DELETE /v1/subjects/"+subject+"/records/profile", "If-Match: \"1\", \"2\"\r\n", 400),
		line("If-Match twice", "DELETE /v1/subjects/"+subject+"/records/profile", "If-Match: \"1\"\r\nIf-Match: \"2\"\r\n", 400),
		line("reference twice", "GET "+record, "Access-Reference: a\r\nAccess-Reference: "+marker+"\r\n", 400),
		line("reference too long", "GET "+record, "Access-Reference: "+strings.Repeat(marker, 100)+"\r\n", 400),
		line("reference that is not UTF-8", "GET "+record, "Access-Reference: \xff"+marker+"\r\n", 400),
		line("a body where there is none", "GET "+record, "Content-Length: 20\r\n\r\n"+marker+"     ", 400),
		// What hides another header in one is one header, or a second one of a kind that may be given once.
		line("token behind a lone LF", "GET /v1/access-records", "X: "+marker+"\nAuthorization: Bearer "+i.Token("auditor")+"\r\n", 401),
		{name: "token behind a carriage return", status: []int{400, 401}, text: true, pieces: []string{
			i.authorised("shop", "GET /v1/access-records", "X: "+marker+"\r\r\nAuthorization: Bearer "+i.Token("auditor")+"\r\n")}},
	}
}

// Whatever a client sends is refused by a problem that repeats nothing of it, or by the end of the connection. Nothing
// is changed, nobody is served by mistake, and the service goes on.
func TestAttacksOnTheWireAreRefusedAndChangeNothing(t *testing.T) {
	i := start(t, stackOptions())
	subject := i.create(person(1))
	before := i.ledgerSize()
	for kind, attacks := range map[string][]attack{"body": i.bodies(subject), "framing": i.framings(subject), "path": i.paths(subject)} {
		for _, a := range attacks {
			t.Run(kind+"/"+a.name, func(t *testing.T) {
				i := &instance{i.Stack, t}
				x := i.exchange(1, a.pieces...)
				status := 0
				if len(x.answers) > 0 {
					status = x.answers[0].Status
				}
				if !slices.Contains(a.status, status) || status == 0 && !x.closed {
					t.Fatalf("%d, closed %v, want one of %d: %.300s", status, x.closed, a.status, x.raw)
				}
				if bytes.Contains(x.raw, []byte(marker)) || bytes.Contains(x.raw, []byte(subject)) {
					t.Errorf("the answer repeats what was sent: %.300s", x.raw)
				}
				if status == 0 {
					return
				}
				h := x.answers[0].Header
				switch media := h.Get("Content-Type"); {
				case a.text && x.closed && (strings.HasPrefix(media, "text/plain") || len(x.answers[0].Body) == 0):
				case media == "application/problem+json" && h.Get("Cache-Control") == "no-store" &&
					(strings.HasPrefix(problemType(x.answers[0].Body), "urn:pdvault:problem:") || a.name == "HEAD"):
				default:
					t.Errorf("%s, closed %v: %.300s", media, x.closed, x.raw)
				}
			})
		}
	}
	for _, e := range i.ledger(before) {
		if e.Kind != "login.denied" && e.Kind != "access" || e.Kind == "access" && e.Decision != "deny" {
			t.Errorf("entry %d is %s %s", e.Index, e.Kind, e.Decision)
		}
	}
	i.clean(t, marker)
	i.want(http.StatusOK, "shop", "GET", fmt.Sprintf(readPath, subject, "order-fulfilment", "email"), "")
	i.verifyLedger()
}
