package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/access/policy"
)

// policies asks the bundles that were exported with the log.
type policies map[int64]*policy.Bundle

var _ verify.Policies = policies{}

// loadPolicies reads the policy bundles that were exported with the log, policy/<version>.json (see
// [verify.BundlePath]). It returns nil when there are none; the report then counts the reads as rechecked in
// part only, as it does with those that were decided by a version whose bundle is not there.
//
// That a bundle is the one that was published is not for this function to check: verify.VerifyLog compares
// its hash with the log.
func loadPolicies(dir fs.FS) (verify.Policies, error) {
	files, err := fs.ReadDir(dir, path.Dir(verify.BundlePath(1)))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listing the policy bundles: %w", err)
	}
	loaded := make(policies)
	for _, f := range files {
		version, ok := versionOf(f.Name())
		if !ok {
			continue // such as what is left of an interrupted export
		}
		name := verify.BundlePath(version)
		raw, err := fs.ReadFile(dir, name)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", name, err)
		}
		if loaded[version], err = policy.Parse(raw); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	if len(loaded) == 0 {
		return nil, nil
	}
	return loaded, nil
}

// versionOf returns the version whose bundle has this file name.
func versionOf(name string) (int64, bool) {
	version, err := strconv.ParseInt(strings.TrimSuffix(name, ".json"), 10, 64)
	return version, err == nil && version > 0 && name == path.Base(verify.BundlePath(version))
}

// Covers asks the bundle of a version whether it would have permitted an access.
func (p policies) Covers(version int64, e verify.Entry, g verify.Given) error {
	b, ok := p[version]
	if !ok {
		return verify.ErrNoBundle
	}
	return b.Covers(e, g)
}
