package policy

import (
	"io/fs"
	"path"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// MaxBundleSize is the largest bundle in bytes.
const MaxBundleSize = 4 << 20

// LoadDir composes a bundle from the files of a directory, so that people can edit and review each part in
// its own language:
//
//	bundle.json          the document without text.body, collections and cedar
//	policy.md            text.body
//	broker.cedarschema   cedar.schema
//	broker.cedar         cedar.policies
//	collections/*.json   collections, named by file
//
// The result is one canonical JSON object (RFC 8785), so that the same files give the same hash everywhere.
// It is composed, not checked: see Parse.
func LoadDir(dir fs.FS) ([]byte, error) {
	var doc Document
	head, err := readFile(dir, "bundle.json")
	if err != nil {
		return nil, err
	}
	if err := decodeDocument(head, &doc); err != nil {
		return nil, err
	}
	if doc.Text.Body != "" || doc.Cedar != (Cedar{}) || doc.Collections != nil {
		return nil, bad("text.body, collections and cedar have files of their own", "bundle.json")
	}
	for name, to := range map[string]*string{
		"policy.md": &doc.Text.Body, "broker.cedarschema": &doc.Cedar.Schema, "broker.cedar": &doc.Cedar.Policies,
	} {
		b, err := readFile(dir, name)
		if err != nil {
			return nil, err
		}
		*to = string(b)
	}
	files, err := fs.Glob(dir, "collections/*.json")
	if err != nil {
		return nil, &BundleError{Path: "collections", Reason: "cannot be listed", Err: err}
	}
	doc.Collections = make(map[string]jsontext.Value, len(files))
	for _, f := range files {
		b, err := readFile(dir, f)
		if err != nil {
			return nil, err
		}
		if v := jsontext.Value(b); !v.IsValid() {
			return nil, bad("not strict JSON", "%s", f)
		}
		doc.Collections[strings.TrimSuffix(path.Base(f), ".json")] = b
	}
	return encodeDocument(doc)
}

func readFile(dir fs.FS, name string) ([]byte, error) {
	b, err := fs.ReadFile(dir, name)
	if err != nil {
		return nil, &BundleError{Path: name, Reason: "cannot be read", Err: err}
	}
	if len(b) > MaxBundleSize {
		return nil, bad("too large", "%s", name)
	}
	return b, nil
}

// encodeDocument returns the canonical JSON of a document.
func encodeDocument(doc Document) ([]byte, error) {
	b, err := json.Marshal(&doc)
	if err != nil {
		return nil, &BundleError{Reason: "cannot be encoded", Err: err}
	}
	v := jsontext.Value(b)
	if err := v.Canonicalize(); err != nil {
		return nil, &BundleError{Reason: "cannot be encoded", Err: err}
	}
	return v, nil
}

// decodeDocument is strict: unknown or repeated members and invalid UTF-8 are refused.
func decodeDocument(raw []byte, doc *Document) error {
	if len(raw) > MaxBundleSize {
		return bad("too large", "")
	}
	if err := json.Unmarshal(raw, doc, json.RejectUnknownMembers(true)); err != nil {
		return &BundleError{Path: pathOf(err), Reason: "not a strict bundle document", Err: err}
	}
	return nil
}
