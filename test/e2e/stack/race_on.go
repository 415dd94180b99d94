//go:build race

package stack

// Race reports whether this process, and so what Programs builds, has the race detector.
const Race = true
