package sqlstore

import (
	"errors"
	"strings"
)

// Check finds what is wrong with o.URL itself, without a connection: its form, and a
// PostgreSQL over a network without TLS. Open refuses the same.
func Check(o Options) error {
	scheme, rest, _ := strings.Cut(o.URL, ":")
	switch scheme {
	case "sqlite":
		return checkSQLitePath(rest)
	case "postgres", "postgresql":
		_, err := postgresConfig(o)
		return err
	}
	return errors.New("sqlstore: the database URL must start with sqlite:, postgres:// or postgresql://")
}

// checkSQLitePath refuses what is not the path of a file.
func checkSQLitePath(path string) error {
	if path == "" || strings.HasPrefix(path, ":memory:") || strings.HasPrefix(path, "file:") {
		return errors.New("sqlstore: the database URL must be sqlite:PATH with the path of a file")
	}
	return nil
}
