package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// checkEndpoint is the endpoint that Envoy asks, over gRPC.
const checkEndpoint = "ext_authz"

// checkConnections is how many connections all askers share, as the workers of an Envoy have one each.
const checkConnections = 2

// bareCheck is a gRPC server with nothing behind it: it decodes the request and encodes the answer it was given. Its settings are
// gRPC's own.
type bareCheck struct {
	authv3.UnimplementedAuthorizationServer
	*grpc.Server
	answer *authv3.CheckResponse
}

func newBareCheck(a sameAnswer) (*bareCheck, error) {
	s := &bareCheck{Server: grpc.NewServer(), answer: new(authv3.CheckResponse)}
	authv3.RegisterAuthorizationServer(s.Server, s)
	return s, proto.Unmarshal(a.Body, s.answer)
}

// Check implements authv3.AuthorizationServer.
func (s *bareCheck) Check(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	return s.answer, nil
}

// Close ends it.
func (s *bareCheck) Close() error { s.Stop(); return nil }

// checkRequest is what Envoy asks about a payment, in bytes.
func checkRequest(secret string) ([]byte, error) {
	return proto.Marshal(&authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
		Id: "1234567890", Method: "POST", Path: "/payments", Host: "pay.example", Scheme: "https", Protocol: "HTTP/1.1",
		Headers: map[string]string{
			":authority": "pay.example", ":method": "POST", ":path": "/payments", ":scheme": "https", "authorization": "Bearer " + secret, "accept": "*/*",
			"user-agent": "load", "x-forwarded-for": "192.0.2.7", "x-forwarded-proto": "https", "x-request-id": "7d9f1d1c-2c0e-4f6e-9a53-0d6d3c1f9e1b",
		},
	}}}})
}

// checker asks over a connection it shares. It sends a request it has ready, changing the secret alone, and does not decode
// the answer.
type checker struct {
	conn    *grpc.ClientConn
	request []byte
	hole    int
	sample  []string
	next    int
	answer  []byte
	times   histogram
}

// passes is how an answer that lets a request pass begins: with a status that is all zero.
var passes = []byte{0x0a, 0x00}

func (c *checker) ask(ctx context.Context) error {
	copy(c.request[c.hole:], c.sample[c.next])
	if c.next++; c.next == len(c.sample) {
		c.next = 0
	}
	if err := c.conn.Invoke(ctx, authv3.Authorization_Check_FullMethodName, c.request, &c.answer, grpc.ForceCodecV2(undecoded{})); err != nil {
		return err
	}
	if !bytes.HasPrefix(c.answer, passes) {
		return errors.New("a key was not accepted")
	}
	return nil
}

func (c *checker) askUntil(until time.Time) error {
	ctx, cancel := context.WithDeadline(context.Background(), until.Add(patience))
	defer cancel()
	for now := time.Now(); now.Before(until); {
		if err := c.ask(ctx); err != nil {
			return err
		}
		answered := time.Now()
		c.times.note(answered.Sub(now))
		now = answered
	}
	return nil
}

func (c *checker) counted() *histogram { return &c.times }
func (c *checker) Close() error        { return nil } // the connection is the load's

// undecoded passes messages as the bytes they are.
type undecoded struct{}

func (undecoded) Name() string { return "proto" }
func (undecoded) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}
func (undecoded) Unmarshal(data mem.BufferSlice, v any) error {
	into := v.(*[]byte)
	*into = (*into)[:0]
	for _, b := range data {
		*into = append(*into, b.ReadOnlyData()...)
	}
	return nil
}

// connectChecks makes n askers of the server at address.
func connectChecks(address string, sample []string, n int) (list []connection, closers []func() error, err error) {
	var shared []*grpc.ClientConn
	for range min(n, checkConnections) {
		conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return nil, closers, err
		}
		shared, closers = append(shared, conn), append(closers, conn.Close)
	}
	request, err := checkRequest(sample[0])
	hole := bytes.Index(request, []byte(sample[0]))
	if err == nil && hole < 0 {
		err = errors.New("the request does not hold the secret")
	}
	for i := range n {
		list = append(list, &checker{
			conn: shared[i%len(shared)], request: bytes.Clone(request), hole: hole, sample: sample, next: i * len(sample) / n,
		})
	}
	return list, closers, err
}

// captureCheck asks once and returns the answer, for the floor to repeat.
func captureCheck(ctx context.Context, s *child) (a sameAnswer, err error) {
	list, closers, err := connectChecks(s.Check, s.Sample, 1)
	defer func() {
		for _, c := range closers {
			err = errors.Join(err, c())
		}
	}()
	if err != nil {
		return a, err
	}
	c := list[0].(*checker)
	if err := c.ask(ctx); err != nil {
		return a, fmt.Errorf("%s: %w", checkEndpoint, err)
	}
	return sameAnswer{Body: bytes.Clone(c.answer)}, nil
}

// door is a server of either kind.
type door interface {
	Serve(l net.Listener) error
	Close() error
}
