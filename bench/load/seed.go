package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/seal"
	"github.com/syncgram/keyward/internal/sqlstore"
	"github.com/syncgram/keyward/token"
)

const (
	seedBatch  = 5_000  // keys in one write
	sampleSize = 20_000 // secrets the client asks for, spread over all keys; far more than a cache holds
)

// seeded is a database full of active live keys, each of an organization of its own.
type seeded struct {
	store  *sqlstore.Store
	ring   *seal.Ring
	format token.Format
	sample []string // plaintexts
}

// openSeeded opens the database in dir, and fills it first when it is new. The sample is kept beside it,
// because the database has no plaintext.
func openSeeded(ctx context.Context, dir string, n int, progress io.Writer) (_ *seeded, err error) {
	dir = filepath.Join(dir, fmt.Sprintf("keys-%d", n))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	masterKey, samplePath := filepath.Join(dir, "master.key"), filepath.Join(dir, "sample.json")
	if _, err := os.Stat(masterKey); errors.Is(err, os.ErrNotExist) {
		line, err := seal.NewLine("")
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(masterKey, []byte(line+"\n"), 0o600); err != nil {
			return nil, err
		}
	}
	ring, err := seal.Load(masterKey)
	if err != nil {
		return nil, err
	}
	d := &seeded{ring: ring}
	if d.format, err = token.NewFormat("sk"); err != nil {
		return nil, err
	}
	d.store, err = sqlstore.Open(ctx, sqlstore.Options{
		URL: "sqlite:" + filepath.Join(dir, "keyward.db"), Ring: ring,
		Logger: slog.New(slog.NewTextHandler(progress, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.store.Close())
		}
	}()
	kept, err := os.ReadFile(samplePath)
	if err == nil {
		return d, json.Unmarshal(kept, &d.sample)
	}
	if err := d.fill(ctx, n, progress); err != nil {
		return nil, err
	}
	if kept, err = json.Marshal(d.sample); err != nil {
		return nil, err
	}
	return d, os.WriteFile(samplePath, kept, 0o600) // last: a folder with a sample is complete
}

// fill writes n organizations and n keys the way the domain would, seals and audit entries included,
// only many to a transaction.
func (d *seeded) fill(ctx context.Context, n int, progress io.Writer) error {
	began := time.Now()
	for from := 0; from < n; from += seedBatch {
		to := min(from+seedBatch, n)
		_, err := d.store.Write(ctx, keys.Reads{}, func(ctx context.Context, tx keys.Tx) error {
			for i := from; i < to; i++ {
				if err := d.put(ctx, tx, i, n); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("fill the database (a folder that was left half full must be deleted): %w", err)
		}
		if to == n || to%(20*seedBatch) == 0 {
			fmt.Fprintf(progress, "%d of %d keys written, %.0f a second\n", to, n, float64(to)/time.Since(began).Seconds())
		}
	}
	return nil
}

// put writes the i-th organization and its key.
func (d *seeded) put(ctx context.Context, tx keys.Tx, i, n int) error {
	o := keys.Organization{
		ID: fmt.Sprintf("org_%07d", i), Name: "Shop", PaymentsEnabled: true, CurrentEnvironment: keys.Live, Active: true,
		CreatedAt: tx.Now(), UpdatedAt: tx.Now(), Registered: true,
	}
	secret, err := d.format.Generate(keys.Live)
	if err != nil {
		return err
	}
	k := keys.Key{
		ID: fmt.Sprintf("key_%026d", i), OrganizationID: o.ID, Environment: keys.Live,
		Digest: secret.Digest(), Hint: secret.Hint(), Name: "Production key",
		CreatedAt: tx.Now(), CreatedBy: "user_1", State: keys.StateActive,
	}
	if err := tx.PutOrganization(ctx, o); err != nil {
		return err
	}
	if err := tx.InsertKey(ctx, k); err != nil {
		return err
	}
	for action, target := range map[keys.Action]string{keys.ActPutOrganization: o.ID, keys.ActCreate: k.ID} {
		err := tx.Audit(ctx, keys.AuditEntry{
			Actor: "user_1", Action: action, OrganizationID: o.ID, TargetID: target, Outcome: keys.Done,
			RemoteAddress: "127.0.0.1", RequestID: "bench", Revision: tx.Revision(),
		})
		if err != nil {
			return err
		}
	}
	if i%max(1, n/sampleSize) == 0 {
		d.sample = append(d.sample, secret.Reveal())
	}
	return nil
}
