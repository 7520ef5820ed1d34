package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"runtime/pprof"
	"syscall"
	"time"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/access"
	"github.com/syncgram/keyward/internal/extauthz"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/server"
	"github.com/syncgram/keyward/internal/verify"
)

// roles are what this program runs as when it starts itself.
var roles = map[string]func(args []string, stdin io.Reader, stdout, stderr io.Writer) error{
	"serve-floor":   serveFloor,
	"serve-keyward": serveKeyward,
}

// started is the first line a server writes.
type started struct {
	Address string   `json:"address"` // of the HTTP server
	Check   string   `json:"check"`   // of the gRPC server
	Sample  []string `json:"sample,omitempty"`
}

// sameAnswer is what the floor answers at one path.
type sameAnswer struct {
	Header http.Header `json:"header"`
	Body   []byte      `json:"body"`
}

// serveFloor is net/http with nothing behind it: it reads the request's body and writes the bytes
// it was given for the path. Its settings are net/http's own, no deadlines. Beside it is gRPC with nothing behind it.
func serveFloor(args []string, stdin io.Reader, stdout, stderr io.Writer) (err error) {
	f := flag.NewFlagSet("serve-floor", flag.ContinueOnError)
	f.SetOutput(stderr)
	profile := f.String("profile", "", "file for a CPU profile")
	if err := f.Parse(args); err != nil {
		return err
	}
	in := bufio.NewReader(stdin)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return err
	}
	var answers map[string]sameAnswer
	if err := json.Unmarshal(line, &answers); err != nil {
		return err
	}
	stopProfile, err := startProfile(*profile)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopProfile()) }()
	check, err := newBareCheck(answers[checkEndpoint])
	if err != nil {
		return err
	}
	return serveUntilTold(&http.Server{Handler: floor(answers)}, check, started{}, in, stdout)
}

// floor is the handler with nothing behind it.
func floor(answers map[string]sameAnswer) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a, ok := answers[r.URL.Path]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		var buf [512]byte
		for {
			if _, err := r.Body.Read(buf[:]); err != nil {
				break
			}
		}
		h := w.Header()
		for name, values := range a.Header {
			h[name] = values
		}
		w.WriteHeader(http.StatusOK)
		_, _ = w.Write(a.Body) // a client that is gone shows in its own count
	})
}

// serveKeyward is the verification listener over a database, put together as the binary does.
func serveKeyward(args []string, stdin io.Reader, stdout, stderr io.Writer) (err error) {
	f := flag.NewFlagSet("serve-keyward", flag.ContinueOnError)
	f.SetOutput(stderr)
	n := f.Int("keys", 1000, "keys in the database")
	dir := f.String("dir", "", "folder of the databases")
	profile := f.String("profile", "", "file for a CPU profile")
	if err := f.Parse(args); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	d, err := openSeeded(ctx, *dir, *n, stderr)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.store.Close()) }()

	logger := slog.New(slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	began := time.Now()
	handler, check, stop, err := d.verification(ctx, logger)
	if err != nil {
		return err
	}
	defer stop()
	took := time.Since(began)
	fmt.Fprintf(stderr, "%d keys with an organization each loaded into memory in %v: %.0f bytes a key\n",
		*n, took.Round(time.Millisecond), float64(heapBytes())/float64(*n))
	stopProfile, err := startProfile(*profile)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopProfile()) }()
	srv := server.NewHTTPServer(handler, server.Limits{}, logger)
	return serveUntilTold(srv, check, started{Sample: d.sample}, bufio.NewReader(stdin), stdout)
}

// startProfile writes a CPU profile to the file, unless its name is empty, until it is stopped.
func startProfile(name string) (stop func() error, err error) {
	if name == "" {
		return func() error { return nil }, nil
	}
	file, err := os.Create(name)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(file); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return func() error { pprof.StopCPUProfile(); return file.Close() }, nil
}

// verification returns the verification listener's handler and the ext_authz listener once they decide from memory. stop ends what keeps that
// memory current.
func (d *seeded) verification(ctx context.Context, logger *slog.Logger) (_ http.Handler, check *extauthz.Server, stop func(), err error) {
	v, err := verify.New(verify.Config{Feed: d.store, Format: d.format, Logger: logger})
	if err != nil {
		return nil, nil, nil, err
	}
	metrics := server.NewMetrics()
	service, err := keys.NewService(keys.Config{
		Store: d.store, Ring: d.ring, Format: d.format, Barrier: v, Observe: metrics.Act, Render: server.RenderIssued,
	})
	if err != nil {
		return nil, nil, nil, err
	}
	doors, err := server.New(server.Config{
		Service: service, Authenticator: nobody{}, Verifier: v, Operations: operations{d.store.Engine()},
		Format: d.format, Access: access.Open(), Metrics: metrics, Logger: logger, Version: "bench",
	})
	if err != nil {
		return nil, nil, nil, err
	}
	if check, err = extauthz.New(extauthz.Config{Verifier: v, Format: d.format, Access: access.Open(), Metrics: metrics, Logger: logger}); err != nil {
		return nil, nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	following := make(chan struct{})
	go func() { defer close(following); v.Run(ctx) }()
	stop = func() { cancel(); <-following }
	for deadline := time.Now().Add(loadPatience); v.Ready() != nil; {
		if time.Now().After(deadline) {
			stop()
			return nil, nil, nil, fmt.Errorf("the keys were not loaded in %v: %w", loadPatience, v.Ready())
		}
		<-time.After(time.Millisecond)
	}
	return doors.Verification(), check, stop, nil
}

// loadPatience is how long the keys may take to be read into memory.
const loadPatience = 5 * time.Minute

// nobody lets no user in: the load is on the verification listener.
type nobody struct{}

func (nobody) Authenticate(context.Context, string) (keys.Principal, error) {
	return keys.Principal{}, errUnused
}

// operations are those of a program that is only measured.
type operations struct{ engine string }

var errUnused = errors.New("load: only verification is served here")

func (operations) Audit(context.Context, server.AuditQuery) ([]keys.AuditEntry, error) {
	return nil, errUnused
}
func (operations) VerifyAudit(context.Context) (keys.AuditReport, error) {
	return keys.AuditReport{}, errUnused
}
func (operations) Rotate(context.Context, keys.Operator) (api.Reseal, error) {
	return api.Reseal{}, errUnused
}
func (operations) Backup(context.Context, keys.Operator) (server.Backup, error) {
	return nil, errUnused
}
func (operations) Checks(context.Context) ([]api.Check, error) { return nil, errUnused }
func (operations) Nodes(context.Context) (api.NodeList, error) { return api.NodeList{}, errUnused }
func (o operations) Engine() string                            { return o.engine }

// serveUntilTold serves on free loopback ports, says where, and answers each line on in with the
// processor time used so far, in nanoseconds, until in ends.
func serveUntilTold(srv, check door, first started, in *bufio.Reader, out io.Writer) error {
	doors := []door{srv, check}
	served := make(chan error, len(doors))
	for i, at := range []*string{&first.Address, &first.Check} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		go func() { served <- doors[i].Serve(l) }()
		*at = l.Addr().String()
	}
	reply := json.NewEncoder(out)
	if err := reply.Encode(first); err != nil {
		return err
	}
	for {
		if _, err := in.ReadSlice('\n'); err != nil {
			break
		}
		if err := reply.Encode(processorTime()); err != nil {
			break
		}
	}
	for _, d := range doors {
		if err := d.Close(); err != nil {
			return err
		}
		if err := <-served; err != nil && !errors.Is(err, http.ErrServerClosed) {
			return err
		}
	}
	return nil
}

// heapBytes is how much memory is in use after a collection.
func heapBytes() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// processorTime is what this process has used, user and system together.
func processorTime() int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// child is a server process.
type child struct {
	started
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

// start runs this program in a role. first is what the server reads before it starts, if anything.
func start(ctx context.Context, role string, args []string, first any, stderr io.Writer) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &child{cmd: exec.CommandContext(ctx, self, append([]string{role}, args...)...)}
	c.cmd.Stderr = stderr
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	c.out = json.NewDecoder(out)
	if first != nil {
		err = json.NewEncoder(c.in).Encode(first)
	}
	if err == nil {
		err = c.out.Decode(&c.started)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s did not start: %w", role, err), c.stop())
	}
	return c, nil
}

// processorTime asks the server what it has used.
func (c *child) processorTime() (t int64, err error) {
	if _, err := io.WriteString(c.in, "\n"); err != nil {
		return 0, err
	}
	return t, c.out.Decode(&t)
}

// stop ends the server and waits for it.
func (c *child) stop() error {
	return errors.Join(c.in.Close(), c.cmd.Wait())
}
