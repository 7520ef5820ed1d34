package sqlstore_test

import (
	"context"
	"crypto/rand"
	"path/filepath"
	"testing"
	"time"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/seal"
	"github.com/syncgram/keyward/internal/sqlstore"
)

func TestSmoke(t *testing.T) {
	line, err := seal.NewLine("a")
	if err != nil {
		t.Fatal(err)
	}
	ring, err := seal.Parse([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "x", "k.db")
	s, err := sqlstore.Open(ctx, sqlstore.Options{URL: "sqlite:" + path, Ring: ring})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i := range 3 {
		k := keys.Key{ID: "key_" + rand.Text(), OrganizationID: rand.Text(), Environment: keys.Live, State: keys.StateActive, CreatedAt: time.UnixMicro(int64(i + 1)).UTC()}
		rand.Read(k.Digest[:])
		rev, err := s.Write(ctx, func(ctx context.Context, tx keys.Tx) error {
			if err := tx.InsertKey(ctx, k); err != nil {
				return err
			}
			return tx.Audit(ctx, keys.AuditEntry{Action: keys.ActCreate, TargetID: k.ID, Outcome: keys.Done, Revision: tx.Revision()})
		})
		if err != nil {
			t.Fatal(err)
		}
		rev, err = s.Write(ctx, func(ctx context.Context, tx keys.Tx) error {
			k.State = keys.StateRevoked
			if err := tx.UpdateKey(ctx, k); err != nil {
				return err
			}
			if err := tx.PutOrganization(ctx, keys.Organization{ID: "o", Active: true}); err != nil {
				return err
			}
			if err := tx.Audit(ctx, keys.AuditEntry{Action: keys.ActPutOrganization, TargetID: "o", Outcome: keys.Done, Revision: tx.Revision()}); err != nil {
				return err
			}
			return tx.Audit(ctx, keys.AuditEntry{Action: keys.ActRevoke, TargetID: k.ID, Outcome: keys.Done, Revision: tx.Revision()})
		})
		if err != nil {
			t.Fatal(err)
		}
		got, err := s.Key(ctx, k.ID)
		t.Log(rev, got.Genuine, got.State, err)
		u, err := s.Keys(ctx, keys.KeyQuery{OrganizationID: k.OrganizationID})
		t.Log(len(u), err)
		f, err := s.LookUp(ctx, k.Digest, "o")
		t.Log(f.Key.Genuine, f.Owner, f.Connected, err)
		if err := s.RecordUses(ctx, []keys.Use{{KeyID: k.ID, At: time.Now()}, {KeyID: "none", At: time.Now()}}); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	rev, err := s.Snapshot(ctx, keys.Visitor{Key: func(k keys.Key) error { n++; t.Log(k.Genuine); return nil }, Organization: func(keys.Organization) error { return nil }})
	t.Log(rev, n, err)
	ch, err := s.Changes(ctx, 0, 100)
	t.Log(ch.Revision, len(ch.Keys), len(ch.Organizations), err)
	rep, err := s.VerifyAudit(ctx, nil)
	t.Log(rep.Entries, rep.Findings, err)
	d, err := s.Durability(ctx)
	t.Log(d, err)
}
