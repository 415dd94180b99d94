module github.com/prototypster/pdvault

go 1.26.0

require (
	github.com/cedar-policy/cedar-go v1.9.0 // decides: typed permits and forbids, forbid first
	github.com/dgraph-io/badger/v4 v4.9.6 // the embedded storage engine
	github.com/dgraph-io/ristretto/v2 v2.2.0 // memory-mapped files of the engine, for its opening guard
	github.com/gin-gonic/gin v1.12.0 // HTTP routing, in api/server only
	github.com/go-json-experiment/json v0.0.0-20260820222146-c27c302e5fc3 // strict JSON: no duplicate, unknown or case-folded members
	github.com/go-viper/mapstructure/v2 v2.4.0 // strict decoding of configuration, as koanf uses it
	github.com/google/uuid v1.6.0 // ids of subjects, consents and entries
	github.com/hashicorp/go-retryablehttp v0.7.8 // retry rule of the HashiCorp client
	github.com/hashicorp/golang-lru/v2 v2.0.7 // bounded caches
	github.com/hashicorp/vault/api v1.23.0 // the HashiCorp Vault client, in keys/hcvault only
	github.com/knadh/koanf/parsers/yaml v1.1.1 // configuration files in YAML
	github.com/knadh/koanf/providers/file v1.2.1 // configuration files from disk
	github.com/knadh/koanf/v2 v2.4.1 // configuration
	github.com/nyaruka/phonenumbers v1.8.1 // phone numbers of all countries to E.164
	github.com/prometheus/client_golang v1.25.0 // metrics
	github.com/prometheus/common v0.72.0 // media type of the metrics page
	github.com/rivo/uniseg v0.4.7 // masks that do not cut a letter or an emoji in half
	github.com/santhosh-tekuri/jsonschema/v6 v6.0.3 // JSON Schema 2020-12 of collections and of the API
	github.com/schollz/progressbar/v3 v3.19.1 // progress of imports
	github.com/spf13/cobra v1.10.2 // command lines
	github.com/tidwall/btree v1.8.2 // ordered keys of the key store in HashiCorp Vault, and of the store of tests
	github.com/tink-crypto/tink-go/v2 v2.9.0 // keysets, AEAD, PRF and MAC, in keys/keyring only
	go.opentelemetry.io/otel v1.47.0 // W3C trace context
	go.opentelemetry.io/otel/trace v1.47.0 // W3C trace context
	go.yaml.in/yaml/v3 v3.0.6 // the OpenAPI document in tests
	golang.org/x/mod v0.42.0 // Merkle tree (tlog) and signed notes (note)
	golang.org/x/net v0.62.0 // bound on open connections of the second listener; frames of HTTP/2 in tests
	golang.org/x/sync v0.24.0 // bounded groups of goroutines, weighted semaphores
	golang.org/x/sys v0.49.0 // statfs, peer credentials, core-dump limits, unread bytes of a socket
	golang.org/x/term v0.47.0 // whether output goes to a terminal
	golang.org/x/text v0.43.0 // Unicode normalisation and case folding
	golang.org/x/time v0.16.0 // budgets of callers
	google.golang.org/grpc v1.85.0 // between pdvault and its sidecar
	google.golang.org/protobuf v1.36.12 // between pdvault and its sidecar
)

// For tests, benchmarks and their generators only.
require (
	github.com/HdrHistogram/hdrhistogram-go v1.4.0 // latencies in benchmarks
	github.com/brianvoe/gofakeit/v7 v7.18.1 // generated populations
	github.com/google/go-cmp v0.7.0 // differences in test output
	github.com/jackc/pgx/v5 v5.13.0 // PostgreSQL, a baseline of benchmarks
	github.com/rogpeppe/go-internal v1.16.0 // testscript: commands as users type them
	go.uber.org/goleak v1.3.0 // leaked goroutines
	gonum.org/v1/plot v0.17.0 // plots of benchmarks, as SVG
	pgregory.net/rapid v1.3.0 // property tests
)

require (
	codeberg.org/go-fonts/liberation v0.5.0 // indirect
	codeberg.org/go-latex/latex v0.2.0 // indirect
	codeberg.org/go-pdf/fpdf v0.11.1 // indirect
	git.sr.ht/~sbinet/gg v0.7.0 // indirect
	github.com/BurntSushi/toml v1.4.1-0.20240526193622-a339e1f7089c // indirect
	github.com/ajstarks/svgo v0.0.0-20211024235047-1546f124cd8b // indirect
	github.com/beorn7/perks v1.0.1 // indirect
	github.com/bytedance/gopkg v0.1.3 // indirect
	github.com/bytedance/sonic v1.15.0 // indirect
	github.com/bytedance/sonic/loader v0.5.0 // indirect
	github.com/cenkalti/backoff/v4 v4.3.0 // indirect
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	github.com/cloudwego/base64x v0.1.6 // indirect
	github.com/dustin/go-humanize v1.0.1 // indirect
	github.com/fsnotify/fsnotify v1.9.0 // indirect
	github.com/gabriel-vasile/mimetype v1.4.12 // indirect
	github.com/gin-contrib/sse v1.1.0 // indirect
	github.com/go-jose/go-jose/v4 v4.1.4 // indirect
	github.com/go-logr/logr v1.4.4 // indirect
	github.com/go-logr/stdr v1.2.2 // indirect
	github.com/go-playground/locales v0.14.1 // indirect
	github.com/go-playground/universal-translator v0.18.1 // indirect
	github.com/go-playground/validator/v10 v10.30.1 // indirect
	github.com/goccy/go-json v0.10.5 // indirect
	github.com/goccy/go-yaml v1.19.2 // indirect
	github.com/golang/freetype v0.0.0-20170609003504-e2365dfdc4a0 // indirect
	github.com/google/flatbuffers v25.2.10+incompatible // indirect
	github.com/hashicorp/errwrap v1.1.0 // indirect
	github.com/hashicorp/go-cleanhttp v0.5.2 // indirect
	github.com/hashicorp/go-multierror v1.1.1 // indirect
	github.com/hashicorp/go-rootcerts v1.0.2 // indirect
	github.com/hashicorp/go-secure-stdlib/parseutil v0.2.0 // indirect
	github.com/hashicorp/go-secure-stdlib/strutil v0.1.2 // indirect
	github.com/hashicorp/go-sockaddr v1.0.7 // indirect
	github.com/hashicorp/hcl v1.0.1-vault-7 // indirect
	github.com/inconshreveable/mousetrap v1.1.0 // indirect
	github.com/jackc/pgpassfile v1.0.0 // indirect
	github.com/jackc/pgservicefile v0.0.0-20240606120523-5a60cdf6a761 // indirect
	github.com/json-iterator/go v1.1.12 // indirect
	github.com/klauspost/compress v1.20.1 // indirect
	github.com/klauspost/cpuid/v2 v2.3.0 // indirect
	github.com/knadh/koanf/maps v0.1.2 // indirect
	github.com/leodido/go-urn v1.4.0 // indirect
	github.com/mattn/go-isatty v0.0.22 // indirect
	github.com/mitchellh/colorstring v0.0.0-20190213212951-d06e56a500db // indirect
	github.com/mitchellh/copystructure v1.2.0 // indirect
	github.com/mitchellh/go-homedir v1.1.0 // indirect
	github.com/mitchellh/mapstructure v1.5.0 // indirect
	github.com/mitchellh/reflectwalk v1.0.2 // indirect
	github.com/modern-go/concurrent v0.0.0-20180306012644-bacd9c7ef1dd // indirect
	github.com/modern-go/reflect2 v1.0.2 // indirect
	github.com/munnerz/goautoneg v0.0.0-20191010083416-a7dc8b61c822 // indirect
	github.com/pelletier/go-toml/v2 v2.2.4 // indirect
	github.com/prometheus/client_model v0.6.3 // indirect
	github.com/prometheus/procfs v0.22.0 // indirect
	github.com/quic-go/qpack v0.6.0 // indirect
	github.com/quic-go/quic-go v0.59.0 // indirect
	github.com/ryanuber/go-glob v1.0.0 // indirect
	github.com/spf13/pflag v1.0.9 // indirect
	github.com/twitchyliquid64/golang-asm v0.15.1 // indirect
	github.com/ugorji/go/codec v1.3.1 // indirect
	go.mongodb.org/mongo-driver/v2 v2.5.0 // indirect
	go.opentelemetry.io/auto/sdk v1.2.1 // indirect
	go.opentelemetry.io/otel/log v1.47.0 // indirect
	go.opentelemetry.io/otel/metric v1.47.0 // indirect
	golang.org/x/arch v0.22.0 // indirect
	golang.org/x/crypto v0.58.0 // indirect
	golang.org/x/exp v0.0.0-20231110203233-9a3e6036ecaa // indirect
	golang.org/x/exp/typeparams v0.0.0-20231108232855-2478ac86f678 // indirect
	golang.org/x/image v0.30.0 // indirect
	golang.org/x/tools v0.51.0 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20260817212433-ac3dfec99bb1 // indirect
	honnef.co/go/tools v0.8.2 // indirect
)

tool honnef.co/go/tools/cmd/staticcheck
