//go:build unix

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
)

// attackNames are what one caller does, as fast as it can.
var attackNames = []string{"lists", "revokes", "bodies", "idle", "unauthorized", "grpc"}

// attackRole is the argument with which this program runs as the attacker.
const attackRole = "attack"

// attackWork is what the attacker is told.
type attackWork struct {
	Name        string
	Public      string
	ExtAuthz    string
	Token       string // of the user flood in org_flood
	Flooded     string // a key of that organization, revoked
	Connections int    // for revokes
	Idle        int

	atWork func() // says that the attack is under way
}

// attack is a running attacker.
type attack struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func startAttack(ctx context.Context, s *server, o options, name string) (*attack, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	token, err := s.issuer.Issue("flood", "org_flood", time.Hour)
	if err != nil {
		return nil, err
	}
	a := &attack{cmd: exec.CommandContext(ctx, self, attackRole)}
	a.cmd.Stderr = os.Stderr
	if a.in, err = a.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := a.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	a.out = bufio.NewReader(out)
	if err := a.cmd.Start(); err != nil {
		return nil, err
	}
	err = json.NewEncoder(a.in).Encode(attackWork{
		Name: name, Public: s.public, ExtAuthz: s.extauthz, Token: token, Flooded: s.flooded,
		Connections: o.connections, Idle: o.idle,
	})
	if err == nil {
		_, err = a.out.ReadString('\n') // it is at work
	}
	return a, err
}

// stop ends the attacker and returns what it was answered.
func (a *attack) stop() (answered map[string]int) {
	_ = a.in.Close()
	if err := json.NewDecoder(a.out).Decode(&answered); err != nil {
		answered = map[string]int{"the attacker failed": 1}
	}
	_ = a.cmd.Wait() // it has said what there is to say
	return answered
}

// tally counts answers.
type tally struct {
	mu     sync.Mutex
	counts map[string]int
}

func (t *tally) add(what string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.counts[what]++
}

// runAttack attacks until its standard input ends. It leaves the processor to those it attacks.
func runAttack(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer) int {
	_ = syscall.Setpriority(syscall.PRIO_PROCESS, 0, 10)
	in := bufio.NewReader(stdin)
	line, err := in.ReadBytes('\n')
	var w attackWork
	if err == nil {
		err = json.Unmarshal(line, &w)
	}
	if err != nil {
		fmt.Fprintln(stderr, "isolation: attack:", err)
		return 1
	}
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		_, _ = io.Copy(io.Discard, in)
		cancel()
	}()
	t := &tally{counts: map[string]int{}}
	w.atWork = sync.OnceFunc(func() { fmt.Fprintln(stdout) })
	if w.Name != "idle" {
		w.atWork()
	}
	w.run(ctx, t)
	w.atWork()
	if err := json.NewEncoder(stdout).Encode(t.counts); err != nil {
		return 1
	}
	return 0
}

const manyConnections = 64

func (w *attackWork) run(ctx context.Context, t *tally) {
	const keysPath = "/api/v1/auth/api-keys"
	bearer := "Authorization: Bearer " + w.Token + "\r\n"
	json := "Content-Type: application/json\r\nContent-Length: 1\r\n\r\n{"
	switch w.Name {
	case "lists":
		w.repeat(ctx, t, manyConnections, "GET "+keysPath+"?env=all HTTP/1.1\r\nHost: x\r\n"+bearer+"\r\n")
	case "revokes":
		w.repeat(ctx, t, w.Connections, "POST "+keysPath+"/"+w.Flooded+"/revoke HTTP/1.1\r\nHost: x\r\n"+bearer+"Content-Length: 0\r\n\r\n")
	case "bodies":
		w.repeat(ctx, t, manyConnections, "POST "+keysPath+" HTTP/1.1\r\nHost: x\r\n"+bearer+json)
	case "unauthorized":
		w.repeat(ctx, t, manyConnections, "GET "+keysPath+" HTTP/1.1\r\nHost: x\r\n\r\n")
	case "idle":
		w.idle(ctx, t, "GET "+keysPath+" HTTP/1.1\r\nHost: x\r\n\r\n")
	case "grpc":
		w.grpc(ctx, t)
	}
}

// repeat sends a request again and again over each of n connections, each opened again when it
// ends.
func (w *attackWork) repeat(ctx context.Context, t *tally, n int, request string) {
	var running sync.WaitGroup
	for range n {
		running.Go(func() {
			for ctx.Err() == nil {
				w.over(ctx, t, request)
			}
		})
	}
	running.Wait()
}

// over sends a request over one connection until that ends.
func (w *attackWork) over(ctx context.Context, t *tally, request string) {
	conn, err := w.dial(ctx, t)
	if err != nil {
		return
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	in := bufio.NewReader(conn)
	for ctx.Err() == nil {
		if !ask(conn, in, request, t) {
			return
		}
	}
}

func (w *attackWork) dial(ctx context.Context, t *tally) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}} // not the others' address
	conn, err := d.DialContext(ctx, "tcp", w.Public)
	if err != nil && ctx.Err() == nil {
		t.add("no connection")
		time.Sleep(10 * time.Millisecond)
	}
	return conn, err
}

// ask sends one request and reads its answer; false when the connection is over.
func ask(conn net.Conn, in *bufio.Reader, request string, t *tally) bool {
	if _, err := io.WriteString(conn, request); err != nil {
		return false
	}
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		return false
	}
	t.add(strconv.Itoa(resp.StatusCode))
	_, err = io.Copy(io.Discard, resp.Body)
	return err == nil && !resp.Close
}

// idle keeps connections open on which one request was answered, and opens others for those that
// end.
func (w *attackWork) idle(ctx context.Context, t *tally, request string) {
	places := make(chan struct{}, w.Idle)
	var running sync.WaitGroup
	for n := 1; ctx.Err() == nil; n++ {
		if n == w.Idle || len(places) == cap(places) {
			w.atWork() // so many were opened, whether or not they still are
		}
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			continue
		}
		conn, err := w.dial(ctx, t)
		if err != nil {
			<-places
			continue
		}
		running.Go(func() {
			defer func() { <-places }()
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			in := bufio.NewReaderSize(conn, 1024)
			if ask(conn, in, request, t) {
				_, _ = in.ReadByte() // until the server closes it
			}
			t.add("closed")
		})
		time.Sleep(100 * time.Microsecond)
	}
	running.Wait()
}

// message stands for what raw sends.
type message struct{}

// raw sends the same bytes as every message.
type raw struct{ message mem.BufferSlice }

func (r raw) Marshal(any) (mem.BufferSlice, error) { return r.message, nil }
func (r raw) Unmarshal(mem.BufferSlice, any) error { return nil }
func (r raw) Name() string                         { return "proto" }

// grpc sends large messages on many streams of four connections, without a token.
func (w *attackWork) grpc(ctx context.Context, t *tally) {
	const connections, streams, size = 4, 64, 15 << 20
	codec := raw{mem.BufferSlice{mem.SliceBuffer(make([]byte, size))}}
	var running sync.WaitGroup
	for range connections {
		conn, err := grpc.NewClient(w.ExtAuthz, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.add("no connection")
			return
		}
		defer conn.Close()
		for range streams {
			running.Go(func() {
				for ctx.Err() == nil {
					err := conn.Invoke(ctx, "/envoy.service.auth.v3.Authorization/Check", message{}, message{},
						grpc.ForceCodecV2(codec), grpc.MaxCallSendMsgSize(2*size))
					if ctx.Err() != nil {
						return
					}
					t.add(strings.ToLower(status.Code(err).String()))
					if errors.Is(err, context.Canceled) {
						return
					}
				}
			})
		}
	}
	running.Wait()
}
