package sqlstore

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/syncgram/keyward/internal/keys"
)

// A write is announced with what it changed, so that a node which has all before it need not read it. Whoever may connect to the
// database may listen, and announce: so it is encrypted and authenticated under the master key, as the state is.

const (
	mostAnnouncedRows = 4    // of one write; a roll changes three at most
	mostAnnounced     = 7900 // bytes; PostgreSQL takes fewer than 8000
)

// announced is what is in the box of an announcement.
type announced struct {
	Sequence            int64
	Hash                []byte
	BeforeSequence      int64
	BeforeHash          []byte
	SetKeyID            string
	Set                 []byte
	Timeline            int64
	Keys, Organizations [][]any // columns, as keyArguments and organizationArguments have them
}

// announcementContext is what the box of an announcement is bound to. No state is bound to as much, so neither passes for the other.
func announcementContext(databaseID string, revision int64) []byte {
	return append([]byte("announcement "), stateContext(databaseID, revision)...)
}

// announcement is the payload that announces the write: its revision, and what it changed if that is short enough.
func (t *writeTx) announcement() string {
	revision := strconv.FormatInt(t.state.revision, 10)
	if len(t.changed) > mostAnnouncedRows {
		return revision
	}
	a := announced{Sequence: t.state.sequence, Hash: t.state.hash[:], BeforeSequence: t.sequence, BeforeHash: t.hash,
		SetKeyID: t.state.weightKeyID, Set: t.state.weight[:], Timeline: t.timeline}
	for row, columns := range t.changed {
		if row.kind == keys.KindKey {
			a.Keys = append(a.Keys, columns)
		} else {
			a.Organizations = append(a.Organizations, columns)
		}
	}
	plain, err := json.Marshal(a)
	if err != nil {
		return revision
	}
	keyID, box := t.signer.SealState(
		plain,
		announcementContext(t.meta.databaseID, t.state.revision),
	)
	payload := revision + " " + keyID + " " + base64.RawStdEncoding.EncodeToString(box)
	if len(payload) > mostAnnounced {
		return revision
	}
	return payload
}

// announcementOf reads a payload. Whatever else is announced, by whomever, is an announcement without changes.
func (s *Store) announcementOf(payload string) keys.Announcement {
	number, sealed, _ := strings.Cut(payload, " ")
	revision, err := strconv.ParseInt(number, 10, 64)
	if err != nil {
		return keys.Announcement{}
	}
	bare := keys.Announcement{Revision: revision}
	keyID, encoded, _ := strings.Cut(sealed, " ")
	box, err := base64.RawStdEncoding.DecodeString(encoded)
	databaseID := s.databaseID.Load()
	if err != nil || databaseID == nil {
		return bare
	}
	plain, err := s.ring.OpenState(keyID, box, announcementContext(*databaseID, revision))
	if err != nil {
		return bare
	}
	var content struct {
		Sequence            int64
		Hash                []byte
		BeforeSequence      int64
		BeforeHash          []byte
		SetKeyID            string
		Set                 []byte
		Timeline            int64
		Keys, Organizations []jsonRow
	}
	ch := &keys.Changes{Mark: keys.Mark{Revision: revision}}
	if json.Unmarshal(plain, &content) != nil || len(content.Hash) != len(ch.Hash) || len(content.Set) != len(ch.Set.Sum) {
		return bare
	}
	ch.Sequence, ch.Hash = content.Sequence, [32]byte(content.Hash)
	ch.Set = keys.SetHash{KeyID: content.SetKeyID, Sum: [32]byte(content.Set)}
	for _, row := range content.Keys {
		r, err := scanKey(row)
		if err != nil {
			return bare
		}
		k, err := s.keyFromRow(&r, r.Revision == revision)
		if err != nil {
			return bare
		}
		ch.Keys = append(ch.Keys, k)
	}
	for _, row := range content.Organizations {
		r, err := scanOrganization(row)
		if err != nil {
			return bare
		}
		o, err := s.organizationFromRow(&r, r.Revision == revision)
		if err != nil {
			return bare
		}
		ch.Organizations = append(ch.Organizations, o)
	}
	before := keys.Mark{Revision: revision - 1, Sequence: content.BeforeSequence}
	copy(before.Hash[:], content.BeforeHash) // none before the log's first entry
	return keys.Announcement{Revision: revision, Changes: ch, Before: before, Timeline: content.Timeline}
}

// jsonRow is a row whose columns are JSON.
type jsonRow []json.RawMessage

// Scan implements scanner.
func (row jsonRow) Scan(dest ...any) error {
	if len(row) != len(dest) {
		return errors.New("sqlstore: an announced row has other columns")
	}
	for i, d := range dest {
		column, decoded := d, []byte(nil)
		digest, isDigest := d.(digestColumn)
		if isDigest {
			column = &decoded
		}
		if err := json.Unmarshal(row[i], column); err != nil {
			return err
		}
		if isDigest {
			if err := digest.Scan(decoded); err != nil {
				return err
			}
		}
	}
	return nil
}

// Announce implements keys.Feed. It is a transaction of its own that writes nothing, after the write's, so that no write waits in the
// line of those that notify, and it waits for no disk and no standby.
func (s *Store) Announce(ctx context.Context, revision int64) error {
	if s.nodes != nil {
		s.nodes.announce(keys.Announcement{Revision: revision})
		return nil
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	_, err := s.lease.ExecContext(ctx, announce, strconv.FormatInt(revision, 10))
	return err
}

// Listen implements keys.Feed.
func (s *Store) Listen(ctx context.Context, heard func(keys.Announcement)) error {
	if s.nodes != nil {
		return s.nodes.listen(ctx, heard)
	}
	return s.listen(ctx, func(payload string) { heard(s.announcementOf(payload)) })
}

// postgresListen listens on a connection of its own. Announcements arrive on no other, and through a pooler that hands
// connections out by the transaction on none at all. others is a pool on the same address.
func postgresListen(
	ctx context.Context, config postgresSettings, others *pool, heard func(payload string),
) error {
	conn, err := config.connect(ctx)
	if err != nil {
		return fmt.Errorf("sqlstore: listen: %w", err)
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(closing)
	}()
	handedOut, err := handsOutTransactions(ctx, conn, others)
	if handedOut {
		// LISTEN would stay behind on a connection of the pooler's, which would log each notification.
		<-ctx.Done()
		return fmt.Errorf("sqlstore: listen: %w", ctx.Err())
	}
	if err == nil {
		_, err = conn.Exec(ctx, listen)
	}
	for err == nil {
		var n *pgconn.Notification
		if n, err = conn.WaitForNotification(ctx); err == nil {
			heard(n.Payload)
		}
	}
	return fmt.Errorf("sqlstore: listen: %w", err)
}

// sightings is how often handsOutTransactions looks. A pooler hands out first what came back last.
const sightings = 5

// handsOutTransactions reports whether a server process that just answered conn answers others too: a
// pooler gave it away after conn's transaction. It may miss that, and never reports it wrongly.
func handsOutTransactions(ctx context.Context, conn *pgx.Conn, others *pool) (bool, error) {
	for range sightings {
		var one, two int64
		if err := conn.QueryRow(ctx, serverProcess, pgx.QueryExecModeExec).Scan(&one); err != nil {
			return false, err
		}
		if int64(conn.PgConn().PID()) == one {
			return false, nil // there is no pooler
		}
		if err := others.QueryRowContext(ctx, serverProcess).Scan(&two); err != nil {
			return false, err
		}
		if one == two {
			return true, nil
		}
	}
	return false, nil
}
