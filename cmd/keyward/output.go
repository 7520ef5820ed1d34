package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/syncgram/keyward/internal/logsink"
)

// terminal is where a command reads and writes, and what it was started with.
type terminal struct {
	in       io.Reader
	out, err io.Writer
	env      []string
	color    bool // of out
	live     bool // err is a terminal: progress may be drawn on it

	hangups  chan os.Signal // SIGHUP; nil where it is ignored
	detached []*logsink.Sink
}

func newTerminal(env []string, in io.Reader, out, err io.Writer) *terminal {
	noColor, _ := lookup(env, "NO_COLOR") // https://no-color.org: set and not empty
	kind, _ := lookup(env, "TERM")
	return &terminal{
		in: in, out: out, err: err, env: env,
		color: isTerminal(out) && noColor == "" && kind != "dumb",
		live:  isTerminal(err) && kind != "dumb",
	}
}

// detach makes out and err wait for no reader any more, and SIGPIPE end nothing: for a command that
// serves (R12). It returns the sink of err.
func (t *terminal) detach() *logsink.Sink {
	// Notify rather than Ignore, which child processes would inherit. Nobody reads the channel.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	out, log := logsink.New(t.out), logsink.New(t.err)
	t.out, t.err = out, log
	t.detached = append(t.detached, out, log)
	return log
}

// flushTime bounds the wait for the readers of a process that ends.
const flushTime = 2 * time.Second

// flush writes what detached writers still hold, for as long as flushTime.
func (t *terminal) flush() {
	var flushing sync.WaitGroup
	for _, s := range t.detached {
		flushing.Go(func() { s.Close(flushTime) })
	}
	flushing.Wait()
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull) // a character device too, under whatever name it was opened
	return err != nil || !os.SameFile(info, null)
}

// style is an ANSI text style (ECMA-48 SGR).
type style string

const (
	bold   style = "1"
	faint  style = "2"
	red    style = "31"
	green  style = "32"
	yellow style = "33"
	cyan   style = "36"
)

// paint returns text in a style, or as it is where colours are off.
func (t *terminal) paint(s style, text string) string {
	if !t.color || text == "" {
		return text
	}
	return "\x1b[" + string(s) + "m" + text + "\x1b[0m"
}

// format is the flag that every command with a result has.
type format struct {
	Output string `enum:"table,json" default:"table" help:"table for people or json for programs." placeholder:"table|json"`
}

// show prints v as JSON, or calls table.
func (f format) show(t *terminal, v any, table func() error) error {
	if f.Output == "json" {
		e := json.NewEncoder(t.out)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		return e.Encode(v)
	}
	return table()
}

// cell is one field of a table.
type cell struct {
	text  string
	style style
}

// table prints rows in columns as wide as their widest cell.
func (t *terminal) table(header []string, rows [][]cell) error {
	widths := make([]int, len(header))
	head := make([]cell, len(header))
	for i, h := range header {
		head[i] = cell{h, faint}
	}
	rows = append([][]cell{head}, rows...)
	for _, row := range rows {
		for i, c := range row {
			row[i].text = printable(c.text)
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i].text))
		}
	}
	var b strings.Builder
	for _, row := range rows {
		gap := 0 // not written before a cell shows something, so that no line ends with spaces
		for i, c := range row {
			if c.text != "" {
				b.WriteString(strings.Repeat(" ", gap))
				b.WriteString(t.paint(c.style, c.text))
				gap = 0
			}
			gap += widths[i] - utf8.RuneCountInString(c.text) + 2
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(t.out, b.String())
	return err
}

// printable replaces what could move the cursor or change the terminal: names and reasons come
// from callers.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '�'
		}
		return r
	}, s)
}

// progress draws one line on the standard error, over and over, while something long runs. On
// anything but a terminal it draws nothing.
type progress struct {
	t    *terminal
	what string

	mu    sync.Mutex
	note  string // guarded by mu
	stop  chan struct{}
	drawn sync.WaitGroup
}

func (t *terminal) progress(what string) *progress {
	p := &progress{t: t, what: what, stop: make(chan struct{})}
	if t.live {
		p.drawn.Go(p.draw)
	}
	return p
}

func (p *progress) draw() {
	began := time.Now()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			p.mu.Lock()
			fmt.Fprintf(p.t.err, "\r\x1b[K%s… %s %s", p.what, p.note, time.Since(began).Round(time.Second))
			p.mu.Unlock()
		case <-p.stop:
			fmt.Fprint(p.t.err, "\r\x1b[K")
			return
		}
	}
}

// set says how far it is.
func (p *progress) set(note string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.note = note
}

// done removes the line.
func (p *progress) done() {
	close(p.stop)
	p.drawn.Wait()
}

// sheet prints a title and the rows that have a value, as name and value.
func (t *terminal) sheet(title cell, rows [][2]string) error {
	var b strings.Builder
	b.WriteString(t.paint(title.style, printable(title.text)) + "\n")
	width := 0
	for _, r := range rows {
		if r[1] != "" {
			width = max(width, len(r[0]))
		}
	}
	for _, r := range rows {
		if r[1] != "" {
			fmt.Fprintf(&b, "  %s  %s\n", t.paint(faint, fmt.Sprintf("%-*s", width, r[0])), printable(r[1]))
		}
	}
	_, err := io.WriteString(t.out, b.String())
	return err
}
