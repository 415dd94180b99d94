package daemon

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-viper/mapstructure/v2"
	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/v2"
)

// Config is the configuration file of pdvault serve, in YAML. Unknown members are refused.
type Config struct {
	// Instance names this installation in key contexts and in the origin of the ledger. Required; it must
	// be the sidecar's instance, and can never change.
	Instance string `koanf:"instance"`
	// Listen is the address of the HTTP API. Required.
	Listen string `koanf:"listen"`
	// TLS holds certificate and key; without it Listen must be a loopback address.
	TLS struct {
		CertFile string `koanf:"cert_file"`
		KeyFile  string `koanf:"key_file"`
	} `koanf:"tls"`
	// MetricsListen serves /metrics and nothing else, without authentication; empty: not served apart.
	MetricsListen string `koanf:"metrics_listen"`
	// Limits bound what is under way at once.
	Limits struct {
		Connections int `koanf:"connections"` // open connections. 0 means 1,024
		// InFlight is how many requests are worked on; one with a large body counts more than once. 0 means 512.
		InFlight int `koanf:"in_flight"`
	} `koanf:"limits"`
	// Store is the data store.
	Store StoreConfig `koanf:"store"`
	// Sidecar is where pdkeys listens.
	Sidecar struct {
		Socket string `koanf:"socket"` // required
		UID    *int   `koanf:"uid"`    // owner of the socket; absent: our own user
		// Wait is how long a start waits for the sidecar. 0 means 30 s.
		Wait time.Duration `koanf:"wait"`
	} `koanf:"sidecar"`
	// TokensFile lists the callers' tokens as hashes. Required.
	TokensFile string `koanf:"tokens_file"`
	// PolicyDir is the bundle that init publishes as version 1; empty: the default bundle.
	PolicyDir string `koanf:"policy_dir"`
	Ledger    struct {
		// KeyOverlap is how long the ledger key before goes on signing beside a new one, so that who knows only
		// the old one has time to learn the new one. 0 means 14 days.
		KeyOverlap time.Duration `koanf:"key_overlap"`
	} `koanf:"ledger"`
	Log struct {
		Level string `koanf:"level"` // debug, info (default), warn, error
	} `koanf:"log"`
}

// StoreConfig is the configuration of the Badger store.
type StoreConfig struct {
	Dir string `koanf:"dir"` // required
	// ReadOnlyBelow and ReserveBelow are free-space limits in bytes; 0 means the engine's defaults.
	ReadOnlyBelow int64 `koanf:"read_only_below"`
	ReserveBelow  int64 `koanf:"reserve_below"`
	// Ballast is kept allocated against a full disk, in bytes; 0 means the engine's default.
	Ballast int64 `koanf:"ballast"`
	// Memtable is the size in bytes of what is held in memory before it becomes a table; 0 means the engine's
	// default. Below 16 MiB is for tests: a full batch of writes is larger than its transactions may be.
	Memtable int64 `koanf:"memtable"`
}

// LoadConfig reads and validates a configuration file. Relative paths in it are relative to its directory.
func LoadConfig(path string) (Config, error) {
	k := koanf.New(".")
	if err := k.Load(file.Provider(path), yaml.Parser()); err != nil {
		return Config{}, fmt.Errorf("reading %s: %w", path, err)
	}
	var c Config
	err := k.UnmarshalWithConf("", &c, koanf.UnmarshalConf{DecoderConfig: &mapstructure.DecoderConfig{
		Result: &c, TagName: "koanf", ErrorUnused: true, WeaklyTypedInput: false,
		DecodeHook: mapstructure.StringToTimeDurationHookFunc(),
	}})
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	for _, p := range []*string{&c.Store.Dir, &c.Sidecar.Socket, &c.TokensFile, &c.PolicyDir, &c.TLS.CertFile, &c.TLS.KeyFile} {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
	if err := c.Validate(); err != nil {
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// Validate tells everything that is wrong with c at once.
func (c *Config) Validate() error {
	var errs []error
	required := func(name, value string) {
		if value == "" {
			errs = append(errs, fmt.Errorf("%s is required", name))
		}
	}
	required("instance", c.Instance)
	required("listen", c.Listen)
	required("store.dir", c.Store.Dir)
	required("sidecar.socket", c.Sidecar.Socket)
	required("tokens_file", c.TokensFile)
	if strings.ContainsAny(c.Instance, " \n\t/+") {
		errs = append(errs, errors.New("instance must not contain spaces, '/' or '+'"))
	}
	if (c.TLS.CertFile == "") != (c.TLS.KeyFile == "") {
		errs = append(errs, errors.New("tls needs both cert_file and key_file"))
	}
	if c.TLS.CertFile == "" && c.Listen != "" && !loopback(c.Listen) {
		errs = append(errs, errors.New("listen is not a loopback address: personal data needs tls there"))
	}
	if c.MetricsListen != "" && !loopback(c.MetricsListen) {
		errs = append(errs, errors.New("metrics_listen must be a loopback address: it has no authentication"))
	}
	if c.Store.ReadOnlyBelow < 0 || c.Store.ReserveBelow < 0 || c.Store.Ballast < 0 {
		errs = append(errs, errors.New("store limits must not be negative"))
	}
	if c.Store.Memtable < 0 {
		errs = append(errs, errors.New("store.memtable must not be negative"))
	}
	if c.Limits.Connections < 0 || c.Limits.InFlight < 0 {
		errs = append(errs, errors.New("limits must not be negative"))
	}
	if c.Ledger.KeyOverlap < 0 {
		errs = append(errs, errors.New("ledger.key_overlap must not be negative"))
	}
	if _, err := logLevel(c.Log.Level); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// origin is the name of the instance's ledger in checkpoints (C2SP tlog-checkpoint): a URL without scheme.
func (c *Config) origin() string { return c.Instance + ".pdvault/ledger" }
