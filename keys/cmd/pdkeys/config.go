package main

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/go-viper/mapstructure/v2"
	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/v2"

	"github.com/prototypster/pdvault/keys/hcvault"
	"github.com/prototypster/pdvault/keys/localkek"
)

// Config is the configuration file: YAML, without unknown members. Relative paths are relative to the file.
//
//	instance: main
//	socket:
//	  path: /run/pdkeys/pdkeys.sock
//	  group: pdvault          # of the socket, by name or number
//	  allow_uids: [990]       # who may connect, besides pdkeys' own user
//	store:
//	  dir: /var/lib/pdkeys/store
//	                          # or, with kek.type hcvault, in a KV engine of the same HashiCorp Vault:
//	                          # {type: hcvault, hcvault: {mount: pdvault-keys, path: main}}
//	kek:
//	  type: hcvault           # or local
//	  hcvault:
//	    address: https://vault.example.org:8200
//	    ca_file: /etc/pdkeys/ca.pem
//	    mount: transit
//	    key: pdvault
//	    approle:
//	      role_id_file: /etc/pdkeys/role-id
//	      secret_id_file: /run/pdkeys/secret-id
//	      wrapped: true       # secret_id_file holds a wrapping token
//	    epoch:                # the role that may rotate, raise minima and trim; without it no epoch is planned
//	      role_id_file: /etc/pdkeys/epoch-role-id
//	      secret_id_file: /run/pdkeys/epoch-secret-id
//	      wrapped: true
//	  local:
//	    path: /var/lib/pdkeys/root.key
//	epoch: {interval: 7d}     # at most 30d; or {schedule: off}, then older copies of the keys stay alive
//	witness_overlap: 30d      # how long a replaced witness key goes on cosigning
//	budget: {opens_per_second: 20000, subjects_per_hour: 200000} # of one caller; three times that of all
//	cache: {size: 10000, ttl: 30s}
//	metrics: {textfile: /var/lib/node_exporter/pdkeys.prom, interval: 15s}
//	log: {level: info}
type Config struct {
	// Instance names the instance; it is bound into every key and must never change.
	Instance string `koanf:"instance"`
	Socket   struct {
		Path      string   `koanf:"path"`
		Group     string   `koanf:"group"`      // empty leaves the group of pdkeys' user
		AllowUIDs []uint32 `koanf:"allow_uids"` // empty: pdkeys' own user alone
	} `koanf:"socket"`
	Store struct {
		Type    string `koanf:"type"` // badger or hcvault; empty: badger
		Dir     string `koanf:"dir"`
		HCVault struct {
			Mount string `koanf:"mount"` // empty: pdvault-keys
			Path  string `koanf:"path"`
		} `koanf:"hcvault"`
	} `koanf:"store"`
	KEK struct {
		Type  string `koanf:"type"` // local or hcvault
		Local struct {
			Path string `koanf:"path"`
		} `koanf:"local"`
		HCVault HCVault `koanf:"hcvault"`
	} `koanf:"kek"`
	Epoch struct {
		Interval Interval `koanf:"interval"` // absent: 7d
		Schedule string   `koanf:"schedule"` // off, or empty
	} `koanf:"epoch"`
	// WitnessOverlap is how long a replaced witness key goes on cosigning. Absent: the keyring's own default.
	WitnessOverlap Interval `koanf:"witness_overlap"`
	Budget         struct {
		OpensPerSecond  int `koanf:"opens_per_second"`  // of one caller; 0: 20,000
		SubjectsPerHour int `koanf:"subjects_per_hour"` // of one caller; 0: 200,000
	} `koanf:"budget"`
	Cache struct {
		Size int           `koanf:"size"` // bundles; 0: 10,000
		TTL  time.Duration `koanf:"ttl"`  // 0: 30 s; at most 300 s
	} `koanf:"cache"`
	Metrics struct {
		Textfile string   `koanf:"textfile"` // for node_exporter's textfile collector; empty: none
		Interval Interval `koanf:"interval"` // at which it is written; absent: 15s, at most 5m
	} `koanf:"metrics"`
	Log struct {
		Level string `koanf:"level"` // debug, info, warn, error; empty: info
	} `koanf:"log"`
	// ParentWatch ends the process when its parent has died, for development.
	ParentWatch bool `koanf:"parent_watch"`

	group *int
	level slog.Level
}

// HCVault says how HashiCorp Vault is reached.
type HCVault struct {
	Address    string  `koanf:"address"`
	CAFile     string  `koanf:"ca_file"`
	ServerName string  `koanf:"server_name"`
	Namespace  string  `koanf:"namespace"`
	Mount      string  `koanf:"mount"` // empty: transit
	Key        string  `koanf:"key"`
	AppRole    AppRole `koanf:"approle"`
	// Epoch is the role of the epoch job alone, which may do what the other one must not.
	Epoch                    AppRole `koanf:"epoch"`
	AllowPlainHTTPOnLoopback bool    `koanf:"allow_plain_http_on_loopback"`
}

// AppRole says how to log in to HashiCorp Vault.
type AppRole struct {
	Mount        string `koanf:"mount"` // empty: approle
	RoleIDFile   string `koanf:"role_id_file"`
	SecretIDFile string `koanf:"secret_id_file"`
	Wrapped      bool   `koanf:"wrapped"`
}

// Interval is a duration of at least a second, in the form of Go or as a number of days: 168h, 7d.
type Interval time.Duration

var errInterval = errors.New("want a duration such as 168h or 7d, of at least 1s")

func parseInterval(s string) (Interval, error) {
	d, err := time.ParseDuration(s)
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, e := strconv.ParseUint(days, 10, 16)
		d, err = time.Duration(n)*24*time.Hour, e
	}
	if err != nil || d < time.Second {
		return 0, errInterval
	}
	return Interval(d), nil
}

// intervalHook decodes every Interval, and refuses what is not one with more than the name of a type.
func intervalHook(_, to reflect.Type, data any) (any, error) {
	if to != reflect.TypeFor[Interval]() {
		return data, nil
	}
	if s, ok := data.(string); ok {
		return parseInterval(s)
	}
	return nil, fmt.Errorf("%w; to plan no epoch write epoch: {schedule: off}", errInterval)
}

const (
	kekLocal   = "local"
	kekHCVault = "hcvault"

	maxCacheTTL  = 300 * time.Second
	maxCacheSize = 100_000

	defaultEpoch = 7 * 24 * time.Hour
	maxEpoch     = 30 * 24 * time.Hour
	maxOverlap   = 366 * 24 * time.Hour
	scheduleOff  = "off"
	maxOpens     = 10_000_000

	defaultMetrics = 15 * time.Second
	maxMetrics     = 5 * time.Minute
)

var instanceName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// loadConfig reads and checks the file at path.
func loadConfig(path string) (Config, error) {
	var c Config
	info, err := os.Stat(path)
	if err != nil {
		return c, fmt.Errorf("reading configuration: %w", err)
	}
	if info.Mode().Perm()&0o002 != 0 {
		return c, fmt.Errorf("reading configuration: %s may be changed by all users (%v)", path, info.Mode())
	}
	ko := koanf.New("\x00") // no separator, since a member's name may hold any character
	if err := ko.Load(file.Provider(path), yaml.Parser()); err != nil {
		return c, fmt.Errorf("reading configuration: %w", err)
	}
	err = ko.UnmarshalWithConf("", &c, koanf.UnmarshalConf{DecoderConfig: &mapstructure.DecoderConfig{
		Result: &c, TagName: "koanf", ErrorUnused: true,
		MatchName:  func(member, field string) bool { return member == field },
		DecodeHook: mapstructure.ComposeDecodeHookFunc(intervalHook, mapstructure.StringToTimeDurationHookFunc()),
	}})
	if err != nil {
		return c, fmt.Errorf("reading configuration: %w", err)
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return c, fmt.Errorf("reading configuration: %w", err)
	}
	for _, p := range []*string{
		&c.Socket.Path, &c.Store.Dir, &c.KEK.Local.Path, &c.KEK.HCVault.CAFile, &c.KEK.HCVault.AppRole.RoleIDFile,
		&c.KEK.HCVault.AppRole.SecretIDFile, &c.KEK.HCVault.Epoch.RoleIDFile, &c.KEK.HCVault.Epoch.SecretIDFile, &c.Metrics.Textfile,
	} {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
	return c, c.check()
}

// check reports everything that is wrong, not just the first.
func (c *Config) check() error {
	var wrong []error
	need := func(ok bool, format string, args ...any) {
		if !ok {
			wrong = append(wrong, fmt.Errorf("configuration: "+format, args...))
		}
	}
	need(instanceName.MatchString(c.Instance), "instance: want 1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit")
	need(c.Socket.Path != "", "socket.path is missing")
	c.checkStore(need)
	need(c.Cache.Size >= 0 && c.Cache.Size <= maxCacheSize, "cache.size: want at most %d", maxCacheSize)
	need(time.Duration(c.Metrics.Interval) <= maxMetrics, "metrics.interval: want at most %v, or the alert on an old file fires", maxMetrics)
	need(c.Epoch.Schedule == "" || c.Epoch.Schedule == scheduleOff, "epoch.schedule: want off, or nothing")
	need(c.Epoch.Schedule == "" || c.Epoch.Interval == 0, "epoch.interval is given, but epoch.schedule is off")
	need(time.Duration(c.Epoch.Interval) <= maxEpoch,
		"epoch.interval: want at most 30d, since for so long erased data can be read from a backup of the keys")
	need(time.Duration(c.WitnessOverlap) <= maxOverlap, "witness_overlap: want at most 366d")
	need(c.Budget.OpensPerSecond >= 0 && c.Budget.OpensPerSecond <= maxOpens, "budget.opens_per_second: want at most %d", maxOpens)
	need(c.Budget.SubjectsPerHour >= 0 && c.Budget.SubjectsPerHour <= maxOpens, "budget.subjects_per_hour: want at most %d", maxOpens)
	need(c.Cache.TTL >= 0 && c.Cache.TTL <= maxCacheTTL, "cache.ttl: want at most %v", maxCacheTTL)
	if c.Log.Level != "" {
		need(c.level.UnmarshalText([]byte(c.Log.Level)) == nil, "log.level: want debug, info, warn or error")
	}
	if c.Socket.Group != "" {
		gid, err := groupID(c.Socket.Group)
		need(err == nil, "socket.group: no such group")
		c.group = &gid
	}
	switch h := c.KEK.HCVault; c.KEK.Type {
	case kekLocal:
		need(c.KEK.Local.Path != "", "kek.local.path is missing")
		need(h == HCVault{}, "kek.hcvault is given, but kek.type is local")
	case kekHCVault:
		need(c.KEK.Local.Path == "", "kek.local is given, but kek.type is hcvault")
		need(h.Address != "", "kek.hcvault.address is missing")
		need(h.Key != "", "kek.hcvault.key is missing")
		need(h.AppRole.RoleIDFile != "", "kek.hcvault.approle.role_id_file is missing")
		need(h.AppRole.SecretIDFile != "", "kek.hcvault.approle.secret_id_file is missing")
		if h.Epoch != (AppRole{}) {
			need(h.Epoch.RoleIDFile != "", "kek.hcvault.epoch.role_id_file is missing")
			need(h.Epoch.SecretIDFile != "", "kek.hcvault.epoch.secret_id_file is missing")
			need(h.Epoch.Mount == "" || h.Epoch.Mount == h.AppRole.Mount, "kek.hcvault.epoch.mount: want that of kek.hcvault.approle")
		} else {
			need(c.Epoch.Interval == 0, "epoch.interval is given, but kek.hcvault.epoch is missing: no role may carry an epoch out")
		}
	default:
		need(false, "kek.type: want %s or %s", kekLocal, kekHCVault)
	}
	return errors.Join(wrong...)
}

// mayEpoch reports whether this sidecar has what carries out an epoch.
func (c *Config) mayEpoch() bool { return c.KEK.Type == kekLocal || c.KEK.HCVault.Epoch != (AppRole{}) }

// epochInterval is the time between two epochs, 0 when none are planned.
func (c *Config) epochInterval() time.Duration {
	if c.Epoch.Schedule == scheduleOff || !c.mayEpoch() {
		return 0
	}
	return cmp.Or(time.Duration(c.Epoch.Interval), defaultEpoch)
}

func groupID(name string) (int, error) {
	if id, err := strconv.ParseUint(name, 10, 31); err == nil {
		return int(id), nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(g.Gid)
}

// kekName is what the KEK of this configuration calls itself.
func (c *Config) kekName() string {
	if c.KEK.Type == kekLocal {
		return localkek.Name
	}
	return hcvault.Name
}
