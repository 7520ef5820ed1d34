// Command payments serves the example payments API of package paymentsapi, which accepts the
// keys of a running Keyward.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/syncgram/keyward"
	"github.com/syncgram/keyward/examples/payments/paymentsapi"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Getenv, os.Stderr)
	stop()
	os.Exit(code)
}

// grace is how long requests that run at the end may take.
const grace = 5 * time.Second

// run serves until ctx ends and returns the exit code: 0 after a clean end, 1 when it could not
// serve, 2 for a wrong setting. A flag comes before its environment variable.
func run(ctx context.Context, args []string, getenv func(string) string, stderr io.Writer) int {
	or := func(name, otherwise string) string {
		if v := getenv(name); v != "" {
			return v
		}
		return otherwise
	}
	flags := flag.NewFlagSet("payments", flag.ContinueOnError)
	flags.SetOutput(stderr)
	listen := flags.String("listen", or("PAYMENTS_LISTEN", "127.0.0.1:8090"), "address to serve on (PAYMENTS_LISTEN)")
	addresses := flags.String("keyward", or("KEYWARD_ADDRESS", "http://127.0.0.1:8081"), "verification listeners of Keyward, separated by commas, tried in order (KEYWARD_ADDRESS)")
	tokenFile := flags.String("keyward-token-file", getenv("KEYWARD_CREDENTIAL_FILE"), "file whose first line is the token of a credential with the scope verify (KEYWARD_CREDENTIAL_FILE)")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	wrong := func(err error) int {
		fmt.Fprintln(stderr, "payments:", err)
		return 2
	}
	if flags.NArg() > 0 {
		return wrong(errors.New("arguments are not taken, only flags; see -help"))
	}
	cfg := keyward.Config{Addresses: strings.Split(*addresses, ",")}
	if *tokenFile != "" {
		text, err := os.ReadFile(*tokenFile)
		if err != nil {
			return wrong(err)
		}
		first, _, _ := strings.Cut(string(text), "\n")
		if cfg.Token = strings.TrimSpace(first); cfg.Token == "" {
			return wrong(errors.New("the first line of the token file is empty"))
		}
	}
	client, err := keyward.New(cfg)
	if err != nil {
		return wrong(err)
	}
	defer client.Close()

	log := slog.New(slog.NewJSONHandler(stderr, nil))
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		fmt.Fprintln(stderr, "payments:", err)
		return 1
	}
	server := &http.Server{
		Handler:           paymentsapi.New(paymentsapi.Config{Client: client, Logger: log}),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	log.Info("serving payments", "address", listener.Addr().String())
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		log.Error("stopped serving", "error", err)
		return 1
	case <-ctx.Done():
	}
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	err = server.Shutdown(ending)
	<-served
	if err != nil {
		_ = server.Close()
		log.Error("some requests did not end in time", "error", err)
		return 1
	}
	log.Info("stopped")
	return 0
}
