package sqlstore

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/syncgram/keyward/internal/seal"
)

// pgbouncer gives one code, 08P01, to all it says itself, so its words are looked at.
const poolerSays = "08P01"

// Away reports whether err means that the database could not be reached or is not ready to talk, or
// that a master key is missing here (R10), so that it helps to wait.
func Away(err error) bool {
	if WrongSetting(err) != "" {
		return false
	}
	var network *net.OpError
	var name *net.DNSError
	var server *pgconn.PgError
	switch {
	case errors.As(err, &server):
		// Connection exceptions, too many connections, and shutting down or starting up.
		return strings.HasPrefix(server.Code, "08") || server.Code == "53300" || strings.HasPrefix(server.Code, "57P0")
	case errors.As(err, &network), errors.As(err, &name):
		return true
	}
	return errors.Is(err, seal.ErrUnknownKey) || errors.Is(err, ErrNoPrimary) ||
		errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.EOF) ||
		errors.Is(err, io.ErrUnexpectedEOF)
}

// WrongSetting says what is wrong with the settings when err, of Open or Migrate, means that a
// person has to change them; else it returns nothing. It repeats no value.
func WrongSetting(err error) string {
	var unfit unfitError
	if errors.As(err, &unfit) && !errors.Is(err, ErrNoPrimary) {
		return unfit.Error()
	}
	var connecting *pgconn.ConnectError
	if !errors.As(err, &connecting) {
		return ""
	}
	var certificate *tls.CertificateVerificationError
	var authority x509.UnknownAuthorityError
	var host x509.HostnameError
	var server *pgconn.PgError
	switch {
	case errors.As(err, &server):
		return wrongByServer(server)
	case errors.As(err, &certificate), errors.As(err, &authority), errors.As(err, &host):
		return "the certificate of the PostgreSQL server is not accepted; name the authority with sslrootcert in the database URL"
	case strings.Contains(err.Error(), "server refused TLS connection"):
		return "the PostgreSQL server does not speak TLS, which the database URL demands"
	}
	return ""
}

// wrongByServer is WrongSetting for what the server, or a pooler before it, answered to a new
// connection.
func wrongByServer(e *pgconn.PgError) string {
	switch e.Code {
	case "28P01", "28000":
		return "the PostgreSQL server rejects the user or the password (" + e.Code + ")"
	case "3D000":
		return "the PostgreSQL server has no such database: it does not exist (" + e.Code + "); create it first"
	case "42501":
		return "the user may not connect to this database (" + e.Code + ")"
	case "42704":
		return "the database URL sets a parameter that the PostgreSQL server does not know" + nameOf(e)
	case "22023", "22P02", "42601":
		return "the database URL sets a parameter to a value that the PostgreSQL server does not take (" + e.Code + ")"
	case poolerSays:
		switch {
		case strings.Contains(e.Message, "startup parameter"):
			return "the database URL sets a parameter that the pooler does not pass on" + nameOf(e)
		case strings.Contains(e.Message, "no such database"), strings.Contains(e.Message, "database") && strings.Contains(e.Message, "does not exist"):
			return "there is no such database behind the pooler (" + e.Code + "); create it first"
		case strings.Contains(e.Message, "no such user"), strings.Contains(e.Message, "role"), strings.Contains(e.Message, "authentication failed"),
			strings.Contains(e.Message, "wrong password"), strings.Contains(e.Message, "auth failed"):
			return "the pooler rejects the user or the password (" + e.Code + ")"
		}
	}
	return ""
}

// parameterAtFault finds the name of a parameter in a message, and nothing of its value.
var parameterAtFault = regexp.MustCompile(`parameter:? "?([A-Za-z_][A-Za-z0-9_.]*)`)

func nameOf(e *pgconn.PgError) string {
	if m := parameterAtFault.FindStringSubmatch(e.Message); m != nil {
		return ": " + m[1]
	}
	return ""
}

// postgresFull reports whether a new connection was turned away because the server, the role, the
// database or the pooler has all it may have.
func postgresFull(err error) bool {
	var connecting *pgconn.ConnectError
	var e *pgconn.PgError
	if !errors.As(err, &connecting) || !errors.As(err, &e) {
		return false
	}
	return e.Code == "53300" || e.Code == poolerSays && strings.Contains(e.Message, "no more connections allowed")
}

// unfitError says why a server that answers does not keep the promises. To wait does not help.
type unfitError string

func (e unfitError) Error() string { return string(e) }
