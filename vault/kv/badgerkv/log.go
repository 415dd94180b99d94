package badgerkv

import (
	"fmt"
	"log/slog"
	"strings"

	"github.com/dgraph-io/badger/v4"
)

var _ badger.Logger = engineLog{}

// engineLog passes Badger's messages to slog. Badger is talkative, so that its information is our debugging.
type engineLog struct{ log *slog.Logger }

func (l engineLog) Errorf(format string, args ...any)   { l.log.Error(message(format, args)) }
func (l engineLog) Warningf(format string, args ...any) { l.log.Warn(message(format, args)) }
func (l engineLog) Infof(format string, args ...any)    { l.log.Debug(message(format, args)) }

// Debugf drops the message: Badger writes several for each commit.
func (l engineLog) Debugf(string, ...any) {}

func message(format string, args []any) string {
	return "badger: " + strings.TrimSpace(fmt.Sprintf(format, args...))
}
