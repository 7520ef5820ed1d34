package faultproxy

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/syncgram/keyward/internal/pgtest"
)

func TestMain(m *testing.M) {
	code := m.Run()
	pgtest.ReapAll()
	if err := goleak.Find(); code == 0 && err != nil {
		os.Stderr.WriteString(err.Error())
		code = 1
	}
	os.Exit(code)
}

// echo starts a server that sends back what it gets, and returns its address.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return l.Addr().String()
}

func dial(t *testing.T, p *Proxy) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", p.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// answered reads n bytes within the time given and reports whether they came, and when.
func answered(t *testing.T, c net.Conn, n int, within time.Duration) (took time.Duration, err error) {
	t.Helper()
	began := time.Now()
	if err := c.SetReadDeadline(began.Add(within)); err != nil {
		t.Fatal(err)
	}
	_, err = io.ReadFull(c, make([]byte, n))
	return time.Since(began), err
}

func send(t *testing.T, c net.Conn, n int) {
	t.Helper()
	if _, err := c.Write(make([]byte, n)); err != nil {
		t.Fatal(err)
	}
}

const patience = 10 * time.Second

// F7: each fault does what it says to a connection that was there before, and ends at once.
func TestFaults(t *testing.T) {
	const enough = 150 * time.Millisecond
	for _, test := range []struct {
		name  string
		fault Fault
		bytes int
		least time.Duration // what the answer takes; 0 = none comes
	}{
		{"latency", Fault{Latency: 50 * time.Millisecond}, 10, 100 * time.Millisecond},
		{"bandwidth", Fault{BytesPerSecond: 1000}, 300, 300 * time.Millisecond},
		{"black hole", Fault{DropUp: true, DropDown: true}, 10, 0},
		{"lost on the way up", Fault{DropUp: true}, 10, 0},
		{"lost on the way down", Fault{DropDown: true}, 10, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := New(t, echo(t))
			c := dial(t, p)
			send(t, c, 1)
			if _, err := answered(t, c, 1, patience); err != nil {
				t.Fatalf("healthy: %v", err)
			}
			p.Set(test.fault)
			send(t, c, test.bytes)
			if test.least > 0 {
				if took, err := answered(t, c, test.bytes, patience); err != nil || took < test.least {
					t.Errorf("answered after %v with %v, want at least %v", took, err, test.least)
				}
			} else if _, err := answered(t, c, test.bytes, enough); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("answered with %v, want silence", err)
			} else {
				p.Set(Fault{})
				if _, err := answered(t, c, test.bytes, patience); err != nil {
					t.Errorf("what was lost did not arrive afterwards: %v", err)
				}
			}
			p.Set(Fault{})
			send(t, c, 1000)
			if took, err := answered(t, c, 1000, patience); err != nil || took > time.Second {
				t.Errorf("healthy again: after %v with %v", took, err)
			}
		})
	}
}

func TestCutAndRefuse(t *testing.T) {
	p := New(t, echo(t))
	c := dial(t, p)
	send(t, c, 1)
	if _, err := answered(t, c, 1, patience); err != nil {
		t.Fatal(err)
	}
	p.Set(Fault{Refuse: true})
	if refused, err := net.Dial("tcp", p.Address()); err == nil { // else it was reset before Dial returned
		if _, err := answered(t, refused, 1, patience); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a new connection: %v, want its end", err)
		}
		refused.Close()
	}
	send(t, c, 1)
	if _, err := answered(t, c, 1, patience); err != nil {
		t.Errorf("an existing connection: %v", err)
	}
	p.Cut()
	if _, err := answered(t, c, 1, patience); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection that was cut: %v, want its end", err)
	}
	p.Set(Fault{})
	p.SetTarget(echo(t))
	c = dial(t, p)
	send(t, c, 1)
	if _, err := answered(t, c, 1, patience); err != nil {
		t.Errorf("the other server: %v", err)
	}
}

// A black hole hides the end of a connection too.
func TestTheEndIsHeldBack(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := New(t, l.Addr().String())
	c := dial(t, p)
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	p.Set(Fault{DropUp: true})
	send(t, c, 3)
	c.Close()
	if _, err := answered(t, s, 1, 100*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the server got %v, want silence", err)
	}
	p.Set(Fault{})
	if _, err := answered(t, s, 3, patience); err != nil {
		t.Fatalf("the bytes before the end: %v", err)
	}
	if _, err := answered(t, s, 1, patience); !errors.Is(err, io.EOF) {
		t.Fatalf("the server got %v, want the end", err)
	}
}

// postgres returns a proxy before a PostgreSQL, a connection past it, and how to connect through it.
func postgres(t *testing.T) (p *Proxy, direct *pgx.Conn, through *pgx.ConnConfig) {
	t.Helper()
	url := pgtest.URL(t)
	direct, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { direct.Close(context.Background()) })
	p = New(t, direct.PgConn().Conn().RemoteAddr().String())
	if through, err = pgx.ParseConfig(url); err != nil {
		t.Fatal(err)
	}
	address, err := net.ResolveTCPAddr("tcp", p.Address())
	if err != nil {
		t.Fatal(err)
	}
	through.Host, through.Port = "127.0.0.1", uint16(address.Port)
	return p, direct, through
}

// F8: the commit is lost with its answer or only its answer is, and exactly as many as were asked for.
func TestCommitsAreCut(t *testing.T) {
	begin := []string{"BEGIN", "INSERT INTO seen VALUES (1)"}
	for name, test := range map[string]struct {
		cut   func(p *Proxy, n int) <-chan struct{}
		lost  int // rows of the two that are cut
		write func(ctx context.Context, conn *pgx.Conn) error
	}{
		"its answer": {(*Proxy).CutAtCommit, 0, func(ctx context.Context, conn *pgx.Conn) error {
			for _, statement := range append(begin, "COMMIT") {
				if _, err := conn.Exec(ctx, statement, pgx.QueryExecModeSimpleProtocol); err != nil {
					return err
				}
			}
			return nil
		}},
		"its answer, of a pipeline": {(*Proxy).CutAtCommit, 0, func(ctx context.Context, conn *pgx.Conn) error {
			var batch pgx.Batch
			for _, statement := range append(begin, "COMMIT") {
				batch.Queue(statement)
			}
			return conn.SendBatch(ctx, &batch).Close()
		}},
		"all of it": {(*Proxy).CutBeforeCommit, 2, func(ctx context.Context, conn *pgx.Conn) error {
			var batch pgx.Batch
			for _, statement := range append(begin, "COMMIT") {
				batch.Queue(statement)
			}
			return conn.SendBatch(ctx, &batch).Close()
		}},
	} {
		t.Run(name, func(t *testing.T) {
			p, direct, through := postgres(t)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if _, err := direct.Exec(ctx, "CREATE TABLE seen (n int)"); err != nil {
				t.Fatal(err)
			}
			insert := func() error {
				conn, err := pgx.ConnectConfig(ctx, through)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close(ctx)
				return test.write(ctx, conn)
			}
			if err := insert(); err != nil {
				t.Fatal(err)
			}
			cut := test.cut(p, 2)
			for n := range 2 {
				if err := insert(); err == nil {
					t.Errorf("commit %d was answered", n)
				}
				select {
				case <-cut:
				case <-time.After(patience):
					t.Fatalf("nobody was told of cut %d", n)
				}
			}
			if err := insert(); err != nil {
				t.Errorf("the commit after the last cut: %v", err)
			}
			var count int
			if err := direct.QueryRow(ctx, "SELECT count(*) FROM seen").Scan(&count); err != nil || count != 4-test.lost {
				t.Errorf("%d rows and %v, want %d", count, err, 4-test.lost)
			}
		})
	}
}

// F1: while notifications are dropped LISTEN succeeds, queries are answered, and nobody hears of anything.
func TestDropNotifications(t *testing.T) {
	p, direct, through := postgres(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	listener, err := pgx.ConnectConfig(ctx, through)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close(ctx)
	if _, err := listener.Exec(ctx, "LISTEN news"); err != nil {
		t.Fatal(err)
	}
	// heard announces and returns what has come once a query of the listener's own is answered: announcements come before that.
	heard := func(what string) (payloads []string) {
		t.Helper()
		if _, err := direct.Exec(ctx, "SELECT pg_notify('news', $1)", what); err != nil {
			t.Fatal(err)
		}
		var one int
		if err := listener.QueryRow(ctx, "SELECT 1").Scan(&one); err != nil || one != 1 {
			t.Fatalf("the listener's query: %d, %v", one, err)
		}
		for {
			ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
			n, err := listener.WaitForNotification(ctx)
			cancel()
			if err != nil {
				return payloads
			}
			payloads = append(payloads, n.Payload)
		}
	}
	for _, test := range []struct {
		drop bool
		want []string
	}{{false, []string{"before"}}, {true, nil}, {false, []string{"after"}}} {
		p.Set(Fault{DropNotifications: test.drop})
		what := "dropped"
		if !test.drop {
			what = test.want[0]
		}
		if got := heard(what); !slices.Equal(got, test.want) {
			t.Errorf("dropping: %t, heard %q, want %q", test.drop, got, test.want)
		}
	}
}

// However the reads cut the stream, exactly the notifications are dropped, those that begin while they are to be.
func TestAnswersWithoutNotifications(t *testing.T) {
	news, row, empty := message('A', "\x00\x00\x00\x01news\x00A\x00"), message('D', "A\x00\x00\x00\x09AA"), message('n', "")
	stream := news + row + news + news + empty + row + news + empty
	for size := 1; size <= len(stream); size++ {
		for _, drop := range []bool{false, true} {
			want := map[bool]string{false: stream, true: row + empty + row + empty}[drop]
			var a answers
			var got []byte
			for rest := stream; rest != ""; {
				n := min(size, len(rest))
				got = append(got, a.pass([]byte(rest[:n]), drop)...)
				rest = rest[n:]
			}
			if string(got) != want {
				t.Errorf("reads of %d bytes, dropping: %t: %q, want %q", size, drop, got, want)
			}
		}
	}
	var a answers
	got := string(a.pass([]byte(news[:7]), false)) + string(a.pass([]byte(news[7:]+news[:3]), true)) + string(a.pass([]byte(news[3:]+row), false))
	if want := news + row; got != want {
		t.Errorf("a fault that begins and ends within messages: %q, want %q", got, want)
	}
}

// message is one of PostgreSQL's, with a type.
func message(kind byte, body string) string {
	n := len(body) + 4
	return string([]byte{kind, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}) + body
}

// However the reads cut the stream, exactly the COMMITs are found.
func TestFramesFindCommits(t *testing.T) {
	startup := func(code string, body string) string {
		n := len(body) + 8
		return string([]byte{0, 0, byte(n >> 8), byte(n)}) + code + body
	}
	stream := startup("\x04\xd2\x16\x2f", "") + // SSLRequest
		startup("\x00\x03\x00\x00", "user\x00Q\x00\x00") +
		message('Q', "begin\x00") + message('P', "three\x00commit\x00\x00\x00") + message('S', "") +
		message('Q', "commit\x00") + message('Q', "insert into t values ('commit')\x00") +
		message('Q', "COMMIT;\x00") +
		message('P', "one\x00COMMIT\x00\x00\x00") + message('P', "two\x00select 'commit'\x00\x00\x00") +
		message('B', "\x00two\x00\x00\x00\x00\x00\x00\x00") + message('B', "commit\x00\x00\x00\x00\x00\x00\x00\x00") +
		message('B', "\x00one\x00\x00\x00\x00\x00\x00\x00") + message('X', "")
	for size := 1; size <= 48; size++ { // less than lies between two COMMITs
		var f requests
		found := 0
		for rest := stream; rest != ""; {
			n := min(size, len(rest))
			if f.commitIn([]byte(rest[:n])) {
				found++
			}
			rest = rest[n:]
		}
		if found != 3 {
			t.Errorf("reads of %d bytes: %d commits found, want 3", size, found)
		}
	}
}
