package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/syncgram/keyward/internal/seal"
)

// keySource is where the master keys come from: a file, or a command that prints the same lines.
type keySource struct{ file, command string }

// String names the source in logs and errors.
func (k keySource) String() string {
	if k.command != "" {
		return "the master key command"
	}
	return k.file
}

// Bounds of the command.
const (
	keyCommandTime   = 30 * time.Second
	maxCommandOutput = 64 << 10
	maxCommandError  = 2 << 10 // of its standard error, and shown only when it fails
)

// read returns the keys as the source has them now.
func (k keySource) read(ctx context.Context) (*seal.Ring, error) {
	if k.command == "" {
		return seal.Load(k.file)
	}
	output, err := k.run(ctx)
	if err != nil {
		return nil, err
	}
	defer clear(output)
	return seal.ParseNamed(k.String(), output)
}

// run runs the command by the shell, so that a pipe to a decoder can stand in it. What it prints is
// never shown.
func (k keySource) run(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, keyCommandTime)
	defer cancel()
	out := &bounded{
		most: maxCommandOutput,
		full: errors.New("too much"),
	} // which ends the command by SIGPIPE
	said := &bounded{most: maxCommandError}
	cmd := exec.CommandContext(ctx, shell[0], shell[1], k.command)
	cmd.Stdout, cmd.Stderr = out, said
	endWithChildren(cmd)
	cmd.WaitDelay = time.Second // for what it started and that keeps its output open
	err := cmd.Run()
	switch {
	case out.cut:
		return nil, fmt.Errorf("%s printed more than %d KiB", k, maxCommandOutput>>10)
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return nil, fmt.Errorf("%s did not end within %v", k, keyCommandTime)
	case err != nil:
		if text := strings.Join(strings.Fields(string(said.kept)), " "); text != "" {
			return nil, fmt.Errorf("%s failed: %w: %s", k, err, text)
		}
		return nil, fmt.Errorf("%s failed: %w", k, err)
	}
	return out.kept, nil
}

// bounded keeps the first bytes that are written to it. What comes after is dropped, or, when full
// is set, not taken.
type bounded struct {
	kept []byte
	most int
	full error
	cut  bool // there was more
}

// Write implements io.Writer.
func (b *bounded) Write(p []byte) (int, error) {
	if b.kept == nil {
		b.kept = make([]byte, 0, b.most) // not grown while writing, which would leave copies behind
	}
	if room := b.most - len(b.kept); len(p) > room {
		b.cut = true
		b.kept = append(b.kept, p[:room]...)
		return len(p), b.full
	}
	b.kept = append(b.kept, p...)
	return len(p), nil
}

// fileWatch says when a file was changed or replaced, also behind a link, as Kubernetes does with
// mounted secrets.
type fileWatch struct {
	path string
	last os.FileInfo // nil = it was not there
}

func watchFile(path string) *fileWatch {
	w := &fileWatch{path: path}
	w.changed()
	return w
}

func (w *fileWatch) changed() bool {
	info, err := os.Stat(w.path)
	if err != nil {
		info = nil
	}
	before := w.last
	w.last = info
	if info == nil || before == nil {
		return (info == nil) != (before == nil)
	}
	return !os.SameFile(info, before) || !info.ModTime().Equal(before.ModTime()) ||
		info.Size() != before.Size() ||
		info.Mode() != before.Mode()
}

// How often a source is looked at. A command costs somebody something, so it runs only for a
// reason: a signal, a rotation, or a key that is missing, and then with growing pauses.
const (
	keysEvery      = 2 * time.Second
	firstKeysPause = 2 * time.Second
	maxKeysPause   = time.Minute
)

// masterKeys keeps a node's master keys as their source has them (R10, R11).
type masterKeys struct {
	source  keySource
	ring    *seal.Ring
	db      *lateStore
	logger  *slog.Logger
	missing chan string   // ids that were looked for and are not there; one at most
	again   chan struct{} // the source is to be read now
}

func newMasterKeys(source keySource, ring *seal.Ring, db *lateStore, logger *slog.Logger) *masterKeys {
	m := &masterKeys{source: source, ring: ring, db: db, logger: logger, missing: make(chan string, 1), again: make(chan struct{}, 1)}
	ring.OnUnknownKey(func(id string) {
		select {
		case m.missing <- id:
		default:
		}
	})
	return m
}

// readAgain has the source read again soon, as SIGHUP asks for.
func (m *masterKeys) readAgain() {
	select {
	case m.again <- struct{}{}:
	default:
	}
}

// run reads the source again when it changes, on SIGHUP, when a key is missing and when a rotation asks for one, until ctx ends.
func (m *masterKeys) run(ctx context.Context) {
	var file *fileWatch
	if m.source.command == "" {
		file = watchFile(m.source.file)
	}
	tick := time.NewTicker(keysEvery)
	defer tick.Stop()
	var lacking string // the id that is missing, as it was logged
	var again time.Time
	pause := firstKeysPause
	for {
		id, now := "", false
		select {
		case <-ctx.Done():
			return
		case <-m.again:
			now = true
		case id = <-m.missing:
		case <-tick.C:
			now = file != nil && file.changed()
			if id = m.needed(ctx); id == "" && lacking != "" && m.ring.Has(lacking) {
				lacking, pause, again = "", firstKeysPause, time.Time{}
			}
		}
		if id != "" && !m.ring.Has(id) && seal.ValidID(id) {
			if id != lacking {
				lacking, pause, again = id, firstKeysPause, time.Time{}
				m.logger.Error(
					"this node lacks a master key; what is authenticated under it cannot be decided here until the node has it",
					"master_key",
					id,
					"source",
					m.source.String(),
				)
			}
			now = now || !time.Now().Before(again)
		}
		if !now {
			continue
		}
		if err := m.reload(ctx); err != nil {
			m.logger.Error(
				"the master keys could not be read again; those in memory stay",
				"source",
				m.source.String(),
				"error",
				err,
			)
		}
		again = time.Now().Add(pause)
		pause = min(2*pause, maxKeysPause)
	}
}

// needed has this node's row say which keys it has, and returns the id of one that the database or
// a rotation wants and that is missing.
func (m *masterKeys) needed(ctx context.Context) string {
	s, err := m.db.opened()
	if err != nil {
		return ""
	}
	signing, asked, err := s.MasterKey(ctx)
	if err != nil {
		return ""
	}
	if !m.ring.Has(signing) {
		return signing
	}
	if err := s.Advertise(ctx); err != nil {
		m.logger.Debug("the node's row could not be written", "error", err)
	}
	if asked != "" && !m.ring.Has(asked) {
		return asked
	}
	return ""
}

// reload takes the keys as the source has them now, unless one is missing that the database needs,
// or one is not the key that this node or another has under its id.
func (m *masterKeys) reload(ctx context.Context) error {
	next, err := m.source.read(ctx)
	if err != nil {
		return err
	}
	replace := func() (bool, error) { return m.ring.Replace(next) } // nothing was read from a database yet
	if s, err := m.db.opened(); err == nil {
		replace = func() (bool, error) { return s.ReplaceMasterKeys(ctx, next) }
	}
	changed, err := replace()
	if changed {
		m.logger.Info(
			"the master keys were read again",
			"source",
			m.source.String(),
			"keys",
			strings.Join(m.ring.KeyIDs(), " "),
		)
	}
	return err
}
