//go:build race

package ledger_test

// raceEnabled makes tests that only add size, and no concurrency, smaller: the detector slows them tenfold.
const raceEnabled = true
