package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/coreos/go-systemd/v22/journal"
)

// newLog logs to the journal with fields, if standard error goes there, else
// as text.
func newLog(stderr io.Writer) *slog.Logger {
	if f, ok := stderr.(*os.File); ok {
		if to, err := journal.StderrIsJournalStream(); f == os.Stderr && err == nil && to {
			return slog.New(&journalHandler{})
		}
	}
	return slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{} // who reads this has a clock, or a pipe that adds one
		}
		return a
	}}))
}

// journalHandler writes records as journal entries: the attributes become
// fields (JAIL=, ADDR=), so that journalctl JAIL=sshd finds them.
type journalHandler struct {
	attrs []slog.Attr
}

func (h *journalHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }

func (h *journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &journalHandler{attrs: append(h.attrs[:len(h.attrs):len(h.attrs)], attrs...)}
}

// WithGroup isn't used here.
func (h *journalHandler) WithGroup(string) slog.Handler { return h }

func (h *journalHandler) Handle(_ context.Context, r slog.Record) error {
	priority := journal.PriInfo
	switch {
	case r.Level >= slog.LevelError:
		priority = journal.PriErr
	case r.Level >= slog.LevelWarn:
		priority = journal.PriWarning
	}
	fields := map[string]string{"SYSLOG_IDENTIFIER": "xdpban"}
	message := r.Message
	add := func(a slog.Attr) bool {
		value := a.Value.Resolve().String()
		fields[fieldName(a.Key)] = value
		if a.Key != "addr" { // the message names it
			message += fmt.Sprintf(" %s=%s", a.Key, value)
		}
		return true
	}
	for _, a := range h.attrs {
		add(a)
	}
	r.Attrs(add)
	return journal.Send(message, priority, fields)
}

// fieldName makes a name that the journal takes: capitals, digits and
// underscores, not beginning with an underscore (systemd.journal-fields(7)).
func fieldName(key string) string {
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, key)
	return strings.TrimLeft(name, "_0123456789")
}
