package report

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
)

// Files of a page.
const (
	pageFile = "README.md"
	jsonFile = "results.json"
)

// WriteDocs writes the page, the figures and the plots into dir, which is made when absent.
func (r *Results) WriteDocs(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	plots, err := r.plots()
	if err != nil {
		return fmt.Errorf("drawing: %w", err)
	}
	figures, err := r.JSON()
	if err != nil {
		return err
	}
	files := map[string][]byte{pageFile: r.page(plots), jsonFile: append(figures, '\n')}
	for _, p := range plots {
		files[p.file] = p.svg
	}
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (r *Results) page(plots []drawn) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Benchmarks\n\nMade by the command below; edit nothing here. The figures are also in [%s](%s).\n\n", jsonFile, jsonFile)
	fmt.Fprintf(&b, "| | |\n|---|---|\n| date | %s |\n| took | %.0f s |\n| command | `%s` |\n| machine | %s |\n| load average at the start | %s |\n",
		r.Date.UTC().Format("2006-01-02 15:04 UTC"), r.Took, r.Command, r.Machine, r.Load)
	if r.Caveat != "" {
		fmt.Fprintf(&b, "| caveat | **%s** |\n", r.Caveat)
	}
	fmt.Fprint(&b, `
The real programs are measured, with the load generator and every baseline on the same machine, everything durable, and
records with six fields. "µs" is processor time of each program per record; "ledger commits" and "sidecar calls" say how
many were done together, and how long one commit or call took. Bytes on disk are those after an orderly stop, without
the ballast; those per read are everything by which the data store grew. Starts are timed until ready, with files in the
page cache.

The baselines:

- **bare gin**: a handler with one fixed answer; what HTTP alone costs.
- **raw Badger**: the storage engine alone with the same durability, in the process that measures: each connection commits
  a record in a transaction of its own, or, "grouped", all that wait share one. No HTTP, no encryption, no access record.
- **HashiCorp KV v2**, **HashiCorp transit**: a real HashiCorp Vault with raft storage and a file audit device, over HTTP:
  put and get of the same record, encrypt and decrypt of it. Its audit log is not synced.
- **PostgreSQL**: what a team would write by hand with pgcrypto and pgx, over a Unix socket and without HTTP: a table with six
  fields encrypted by `+"`pgp_sym_encrypt`"+` with its defaults, HMACs for the two fields that are sought and unique, and an audit table. A
  read is one transaction that inserts the audit row and then decrypts; `+"`synchronous_commit`"+` is on. Whoever holds the
  key may read without a record, and may change the audit table.
`)
	for _, p := range plots {
		fmt.Fprintf(&b, "\n![%s](%s)\n", p.title, p.file)
	}
	for _, t := range r.tables() {
		t.markdown(&b)
	}
	return b.Bytes()
}
