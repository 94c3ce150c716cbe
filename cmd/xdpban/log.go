package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/coreos/go-systemd/v22/journal"

	"xdpban/internal/daemon"
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
		if a.Key == slog.TimeKey || a.Key == eventKey {
			return slog.Attr{} // who reads this has a clock, or a pipe that adds one
		}
		return a
	}}))
}

// eventKey is the attribute that tells programs what happened.
const eventKey = "event"

// messageID is the MESSAGE_ID= of an event: journalctl finds entries by it,
// and catalogs and alerts hang on it. xdpban(1) lists them; they never change.
func messageID(event string) string {
	switch event {
	case daemon.EventUp:
		return "53959f48bffb5c89986b0284afda02f2"
	case daemon.EventBan:
		return "3538e9841d3d500300f38a157ea42770"
	case daemon.EventUnban:
		return "a7c3083dfa8f6330b8ab9fdd3667d75e"
	case daemon.EventOver:
		return "de118ac350b63751b9082d26e3ad926b"
	case daemon.EventRefuse:
		return "afa41ad700ed8ebc1c4b58158cd1acdd"
	case daemon.EventObserve:
		return "e90a4957ab5a3c499ade5da718ca128d"
	case daemon.EventFull:
		return "b1f91768673884331d0f81cb3104b29c"
	case daemon.EventProblem:
		return "c0d9da1eb5d61a23cc366b23458180e0"
	case daemon.EventSolved:
		return "dfe2f809ad03a0766b45aa2e44346fc1"
	case daemon.EventGuard:
		return "4685115def69cfeb606f0391aab448d5"
	case daemon.EventReload:
		return "4e96eed6dab745318c9adf25910d2936"
	case daemon.EventBacklog:
		return "1d9d3ece38b34d2995ccfe4f343fe856"
	case daemon.EventCurrent:
		return "2902c0195d7b49db9af6d2edb8b72b67"
	}
	return ""
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
		if a.Key == eventKey {
			fields["MESSAGE_ID"] = messageID(value)
			return true
		}
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
