package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// FuzzConfig: no file makes it panic; one that is taken is within the limits that the promises rest on.
func FuzzConfig(f *testing.F) {
	const least = "instance: main\nsocket: {path: pdkeys.sock}\nstore: {dir: keys}\nkek: {type: local, local: {path: root.key}}\n"
	f.Add([]byte(least))
	f.Add([]byte(least + "epoch: {interval: 7d}\nwitness_overlap: 14d\nbudget: {opens_per_second: 1, subjects_per_hour: 2}\ncache: {size: 10, ttl: 30s}\n"))
	f.Add([]byte(least + "epoch: {schedule: off}\nmetrics: {textfile: m, interval: 1s}\nlog: {level: warn}\n"))
	f.Add([]byte("instance: main\nsocket: {path: s, group: '0', allow_uids: [1]}\nstore: {type: hcvault, hcvault: {mount: m, path: p}}\nkek: {type: hcvault, hcvault: {address: 'https://x', key: k, approle: {role_id_file: a, secret_id_file: b, wrapped: true}}}\n"))
	f.Add([]byte("instance: &a [*a]\n"))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		path := filepath.Join(t.TempDir(), "pdkeys.yaml")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := loadConfig(path)
		if err != nil {
			return
		}
		if !instanceName.MatchString(c.Instance) || !filepath.IsAbs(c.Socket.Path) {
			t.Errorf("taken: instance %q, socket %q", c.Instance, c.Socket.Path)
		}
		if c.Cache.TTL < 0 || c.Cache.TTL > maxCacheTTL || c.Cache.Size < 0 || c.Cache.Size > maxCacheSize {
			t.Errorf("taken: cache %+v", c.Cache)
		}
		if i := c.epochInterval(); i < 0 || i > maxEpoch || c.Budget.OpensPerSecond < 0 || c.Budget.SubjectsPerHour < 0 {
			t.Errorf("taken: interval %v, budget %+v", i, c.Budget)
		}
	})
}

// FuzzInterval: an interval is at least a second, and a duration that the same text means to others.
func FuzzInterval(f *testing.F) {
	for _, s := range []string{"7d", "168h", "1s", "0d", "-1h", "65535d", "99999d", "1ms", "d", "", "1e9h"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		i, err := parseInterval(s)
		switch d, plain := time.ParseDuration(s); {
		case err != nil && i != 0:
			t.Errorf("failed with %v and a result", err)
		case err == nil && time.Duration(i) < time.Second:
			t.Errorf("%v was taken", time.Duration(i))
		case err == nil && plain == nil && d != time.Duration(i):
			t.Errorf("%v for %v", time.Duration(i), d)
		}
	})
}
