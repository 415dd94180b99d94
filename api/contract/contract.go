// Package contract checks answers against api/openapi.yaml. It is for tests only: a program must never import
// it.
package contract

import (
	"bytes"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/go-json-experiment/json"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"

	"github.com/prototypster/pdvault/api"
)

// Document is the parsed contract.
type Document struct {
	root     map[string]any
	compiler *jsonschema.Compiler

	mu      sync.Mutex // guards schemas and compiler
	schemas map[string]*jsonschema.Schema
}

const location = "pdvault:openapi.json"

// methods are those that a path item can have, as OpenAPI writes them.
var methods = []string{"get", "put", "post", "delete", "options", "head", "patch", "trace"}

// load is Load done once.
var load = sync.OnceValues(func() (*Document, error) {
	var tree any
	if err := yaml.Unmarshal(api.OpenAPI, &tree); err != nil {
		return nil, fmt.Errorf("contract: %w", err)
	}
	raw, err := json.Marshal(tree)
	if err != nil {
		return nil, fmt.Errorf("contract: not JSON: %w", err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("contract: %w", err)
	}
	root, ok := doc.(map[string]any)
	if !ok || root["openapi"] != "3.1.0" {
		return nil, errors.New("contract: not an OpenAPI 3.1.0 document")
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	c.AssertFormat()
	if err := c.AddResource(location, doc); err != nil {
		return nil, fmt.Errorf("contract: %w", err)
	}
	return &Document{root: root, compiler: c, schemas: map[string]*jsonschema.Schema{}}, nil
})

// Load returns the contract of package api.
func Load() (*Document, error) { return load() }

// Check validates an answer against the contract that Load returns. route is gin's template or OpenAPI's.
func Check(method, route string, status int, header http.Header, body []byte) error {
	d, err := Load()
	if err != nil {
		return err
	}
	return d.Check(method, route, status, header, body)
}

// Path turns a template of gin into one of OpenAPI: ":id" and "*path" become "{id}" and "{path}".
func Path(route string) string {
	parts := strings.Split(route, "/")
	for i, p := range parts {
		if p != "" && (p[0] == ':' || p[0] == '*') {
			parts[i] = "{" + p[1:] + "}"
		}
	}
	return strings.Join(parts, "/")
}

// Operations lists "METHOD /path" of each operation, sorted.
func (d *Document) Operations() []string {
	var out []string
	paths, _ := d.root["paths"].(map[string]any)
	for path, item := range paths {
		for _, m := range methods {
			if _, ok := item.(map[string]any)[m]; ok {
				out = append(out, strings.ToUpper(m)+" "+path)
			}
		}
	}
	slices.Sort(out)
	return out
}

// pointer builds a JSON pointer.
func pointer(tokens ...string) string {
	var b strings.Builder
	for _, t := range tokens {
		b.WriteByte('/')
		b.WriteString(strings.NewReplacer("~", "~0", "/", "~1").Replace(t))
	}
	return b.String()
}

// at returns what lies at ptr, following a $ref there, and where it really lies.
func (d *Document) at(ptr string) (map[string]any, string, bool) {
	var v any = d.root
	for token := range strings.SplitSeq(strings.TrimPrefix(ptr, "/"), "/") {
		m, ok := v.(map[string]any)
		if !ok {
			return nil, "", false
		}
		if v, ok = m[strings.NewReplacer("~1", "/", "~0", "~").Replace(token)]; !ok {
			return nil, "", false
		}
	}
	m, ok := v.(map[string]any)
	if !ok {
		return nil, "", false
	}
	if ref, ok := m["$ref"].(string); ok {
		return d.at(strings.TrimPrefix(ref, "#"))
	}
	return m, ptr, true
}

// Schema compiles the schema at ptr.
func (d *Document) Schema(ptr string) (*jsonschema.Schema, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s := d.schemas[ptr]; s != nil {
		return s, nil
	}
	s, err := d.compiler.Compile(location + "#" + ptr)
	if err != nil {
		return nil, fmt.Errorf("contract: %w", err)
	}
	d.schemas[ptr] = s
	return s, nil
}

// validate checks body against the schema at ptr.
func (d *Document) validate(ptr string, v any) error {
	s, err := d.Schema(ptr)
	if err != nil {
		return err
	}
	return s.Validate(v)
}

// Check validates an answer: its status must be in the contract, and headers and body as it says there.
func (d *Document) Check(method, route string, status int, header http.Header, body []byte) error {
	where := fmt.Sprintf("contract: %s %s %d", method, Path(route), status)
	operation := pointer("paths", Path(route), strings.ToLower(method))
	if _, _, ok := d.at(operation); !ok {
		return fmt.Errorf("%s: no such operation", where)
	}
	response, ptr, ok := d.at(operation + pointer("responses", strconv.Itoa(status)))
	if !ok {
		if status < 400 {
			return fmt.Errorf("%s: a success with this status is not in the contract", where)
		}
		if response, ptr, ok = d.at(operation + pointer("responses", "default")); !ok {
			return fmt.Errorf("%s: status is not in the contract", where)
		}
	}
	if header.Get("Cache-Control") != "no-store" || header.Get("X-Content-Type-Options") != "nosniff" {
		return fmt.Errorf("%s: headers that every answer has are missing", where)
	}
	headers, _ := response["headers"].(map[string]any)
	for name := range headers {
		h, at, ok := d.at(ptr + pointer("headers", name))
		if !ok {
			return fmt.Errorf("%s: header %s is malformed in the contract", where, name)
		}
		values := header.Values(name)
		if len(values) == 0 {
			if h["required"] == true {
				return fmt.Errorf("%s: header %s is missing", where, name)
			}
			continue
		}
		if err := d.validate(at+"/schema", values[0]); err != nil {
			return fmt.Errorf("%s: header %s: %w", where, name, err)
		}
	}
	content, _ := response["content"].(map[string]any)
	if content == nil {
		if len(body) > 0 || header.Get("Content-Type") != "" {
			return fmt.Errorf("%s: has a body", where)
		}
		return nil
	}
	media, _, err := mime.ParseMediaType(header.Get("Content-Type"))
	if err != nil {
		return fmt.Errorf("%s: Content-Type: %w", where, err)
	}
	mediaType, at, ok := d.at(ptr + pointer("content", media))
	if !ok {
		return fmt.Errorf("%s: media type %s is not in the contract", where, media)
	}
	if _, ok := mediaType["schema"]; !ok {
		return nil
	}
	var v any = string(body)
	if strings.HasSuffix(media, "json") {
		if v, err = jsonschema.UnmarshalJSON(bytes.NewReader(body)); err != nil {
			return fmt.Errorf("%s: body: %w", where, err)
		}
	}
	if err := d.validate(at+"/schema", v); err != nil {
		return fmt.Errorf("%s: body: %w", where, err)
	}
	if media == api.ProblemMediaType {
		if said := v.(map[string]any)["status"]; fmt.Sprint(said) != strconv.Itoa(status) {
			return fmt.Errorf("%s: the problem says status %v", where, said)
		}
	}
	return nil
}

// CheckRequest validates the body of a request.
func (d *Document) CheckRequest(method, route, media string, body []byte) error {
	ptr := pointer("paths", Path(route), strings.ToLower(method), "requestBody", "content", media)
	if _, _, ok := d.at(ptr); !ok {
		return fmt.Errorf("contract: %s %s takes no %s", method, route, media)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		return err
	}
	return d.validate(ptr+"/schema", v)
}

// Examples validates every example of the document against the schema beside it.
func (d *Document) Examples() error { return d.examples("", d.root) }

func (d *Document) examples(ptr string, v any) error {
	var errs []error
	switch v := v.(type) {
	case map[string]any:
		if example, ok := v["example"]; ok {
			if _, ok := v["schema"]; ok {
				if err := d.validate(ptr+"/schema", example); err != nil {
					errs = append(errs, fmt.Errorf("contract: example at %s: %w", ptr, err))
				}
			}
		}
		for name, member := range v {
			if name != "example" {
				errs = append(errs, d.examples(ptr+pointer(name), member))
			}
		}
	case []any:
		for i, member := range v {
			errs = append(errs, d.examples(ptr+pointer(strconv.Itoa(i)), member))
		}
	}
	return errors.Join(errs...)
}
