package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
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
//	  local:
//	    path: /var/lib/pdkeys/root.key
//	cache: {size: 10000, ttl: 30s}
//	metrics: {textfile: /var/lib/node_exporter/pdkeys.prom}
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
	Cache struct {
		Size int           `koanf:"size"` // bundles; 0: 10,000
		TTL  time.Duration `koanf:"ttl"`  // 0: 30 s; at most 300 s
	} `koanf:"cache"`
	Metrics struct {
		Textfile string `koanf:"textfile"` // for node_exporter's textfile collector; empty: none
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
	Address    string `koanf:"address"`
	CAFile     string `koanf:"ca_file"`
	ServerName string `koanf:"server_name"`
	Namespace  string `koanf:"namespace"`
	Mount      string `koanf:"mount"` // empty: transit
	Key        string `koanf:"key"`
	AppRole    struct {
		Mount        string `koanf:"mount"` // empty: approle
		RoleIDFile   string `koanf:"role_id_file"`
		SecretIDFile string `koanf:"secret_id_file"`
		Wrapped      bool   `koanf:"wrapped"`
	} `koanf:"approle"`
	AllowPlainHTTPOnLoopback bool `koanf:"allow_plain_http_on_loopback"`
}

const (
	kekLocal   = "local"
	kekHCVault = "hcvault"

	maxCacheTTL  = 300 * time.Second
	maxCacheSize = 100_000
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
		DecodeHook: mapstructure.StringToTimeDurationHookFunc(),
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
		&c.KEK.HCVault.AppRole.SecretIDFile, &c.Metrics.Textfile,
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
	default:
		need(false, "kek.type: want %s or %s", kekLocal, kekHCVault)
	}
	return errors.Join(wrong...)
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
