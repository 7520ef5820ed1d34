package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/seal"
	"github.com/syncgram/keyward/internal/server"
	"github.com/syncgram/keyward/internal/sqlstore"
)

// howPostgres says how PostgreSQL is backed up.
const howPostgres = "the data is in PostgreSQL: back it up with its own tools, such as " +
	"`pg_dump --format=custom --exclude-table-data=serving_nodes --file=keyward.dump`, or archive its log; see docs/backup.md"

type backupCmd struct {
	connection
	format
	database
	To            string `required:"" type:"path" help:"File to write. It must not exist." placeholder:"FILE"`
	Offline       bool   `help:"Copy the file of --database-url of a server that is stopped, instead of asking one that runs."`
	MasterKeyFile string `setting:"" type:"path" help:"Also check every row and the audit log of the copy under this key file." placeholder:"FILE"`
}

// Help implements kong.HelpProvider.
func (backupCmd) Help() string {
	return `Copies an SQLite database, consistent while it serves: the copy holds every write that was answered before the command began. Copying the .db file alone loses the newest writes. The copy is checked once it is written, and the exit code is 1 when something is wrong with it. The master key is not in it: keep that elsewhere. For PostgreSQL the command says what to run.

Example:

    keyward backup --to /backup/keyward-$(date +%F).db --master-key-file master.key
    keyward backup --to /backup/keyward.db --offline --database-url sqlite:keyward.db`
}

// backupSummary is what the command prints.
type backupSummary struct {
	File       string   `json:"file"`
	Bytes      int64    `json:"bytes"`
	Revision   int64    `json:"revision"`
	Keys       int64    `json:"keys"`
	Sequence   int64    `json:"audit_sequence"`
	Hash       string   `json:"audit_hash"`
	RowsProven bool     `json:"rows_checked"` // under the master key
	Findings   []string `json:"findings"`
}

// Run writes a backup and checks it.
func (c *backupCmd) Run(ctx context.Context, t *terminal) error {
	var ring *seal.Ring
	if c.MasterKeyFile != "" {
		var err error
		if ring, err = seal.Load(c.MasterKeyFile); err != nil {
			return wrong("--master-key-file (KEYWARD_MASTER_KEY_FILE): %w", err)
		}
	}
	if err := c.free(); err != nil {
		return err
	}
	p := t.progress("Backing up")
	done := sync.OnceFunc(p.done)
	defer done()
	source, size, err := c.source(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	partial, err := os.CreateTemp(filepath.Dir(c.To), ".keyward-backup-*") // made 0600
	if err != nil {
		return err
	}
	defer os.Remove(partial.Name()) // once it has its name there is nothing to remove
	n, err := io.Copy(io.MultiWriter(partial, &counter{p: p, size: size}), io.LimitReader(source, size+1))
	if err == nil && n != size {
		err = fmt.Errorf("the copy broke off: %d of %d bytes came", n, size)
	}
	if err := errors.Join(err, partial.Sync(), partial.Close()); err != nil {
		return err
	}
	p.set("checking")
	r, err := sqlstore.CheckBackup(ctx, partial.Name(), ring)
	if err != nil {
		return err
	}
	if err := c.free(); err != nil { // another may have come meanwhile
		return err
	}
	if err := os.Rename(partial.Name(), c.To); err != nil {
		return err
	}
	if err := syncFolder(filepath.Dir(c.To)); err != nil {
		return err
	}
	done()
	s := backupSummary{
		File: c.To, Bytes: size, Revision: r.Revision, Keys: r.Keys, Sequence: r.Sequence, Hash: r.Head(),
		RowsProven: ring != nil, Findings: append([]string{}, r.Findings...),
	}
	if err := c.show(t, s, func() error { return s.print(t) }); err != nil {
		return err
	}
	if len(s.Findings) > 0 {
		return fmt.Errorf("something is wrong with the copy, and so most likely with the database: do not rely on %s", c.To)
	}
	return nil
}

// free checks that nothing stands where the copy goes, nor what SQLite would take for its log.
func (c *backupCmd) free() error {
	for _, suffix := range []string{"", "-wal", "-shm", "-journal"} {
		if _, err := os.Lstat(c.To + suffix); err == nil {
			return wrong("--to: %s exists already; choose another name", c.To+suffix)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return wrong("--to: %w", err)
		}
	}
	return nil
}

// source returns the database file as it is now and its size.
func (c *backupCmd) source(ctx context.Context) (io.ReadCloser, int64, error) {
	if c.Offline {
		return c.offline(ctx)
	}
	cl, err := c.connection.open()
	if err != nil {
		return nil, 0, err
	}
	resp, err := cl.do(ctx, http.MethodPost, "/v1/backup", nil)
	var unreachable *unreachableError
	if errors.As(err, &unreachable) {
		return nil, 0, fmt.Errorf("%w If it is stopped, add --offline", err)
	}
	if err != nil {
		return nil, 0, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		e := &answerError{status: resp.StatusCode}
		data, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		_ = json.Unmarshal(data, &e.Problem) // not a problem document: the status has to do
		return nil, 0, e
	}
	if resp.ContentLength < 0 {
		resp.Body.Close()
		return nil, 0, fmt.Errorf("%s did not answer as Keyward does", cl.base)
	}
	return resp.Body, resp.ContentLength, nil
}

// offline copies around no server: it holds the database's lock.
func (c *backupCmd) offline(ctx context.Context) (io.ReadCloser, int64, error) {
	if err := c.database.check(); err != nil {
		return nil, 0, err
	}
	b, err := sqlstore.OpenBackup(ctx, c.DatabaseURL)
	if errors.Is(err, sqlstore.ErrNoBackup) {
		return nil, 0, &exitError{exitUsage, errors.New(howPostgres)}
	}
	if err != nil {
		return nil, 0, err
	}
	r, w := io.Pipe()
	var copying sync.WaitGroup
	copying.Go(func() {
		_, err := b.WriteTo(w)
		w.CloseWithError(err)
	})
	return &offlineCopy{r, func() error {
		r.Close()
		copying.Wait()
		return b.Close()
	}}, b.Bytes(), nil
}

type offlineCopy struct {
	io.Reader
	close func() error
}

// Close implements io.Closer.
func (c *offlineCopy) Close() error { return c.close() }

// counter draws how much has come.
type counter struct {
	p          *progress
	size, done int64
}

// Write implements io.Writer.
func (c *counter) Write(b []byte) (int, error) {
	c.done += int64(len(b))
	c.p.set(fmt.Sprintf("%d of %d MiB", c.done>>20, c.size>>20))
	return len(b), nil
}

// syncFolder makes a name in a folder survive a power loss.
func syncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (s *backupSummary) print(t *terminal) error {
	title := cell{"backed up", green}
	checked := "the file alone; name the master key file to check every row and the audit log"
	if s.RowsProven {
		checked = "every row and the audit log"
	}
	if len(s.Findings) > 0 {
		title = cell{"something is wrong", red}
	}
	rows := [][2]string{
		{"file", s.File}, {"bytes", strconv.FormatInt(s.Bytes, 10)}, {"revision", strconv.FormatInt(s.Revision, 10)},
		{"keys", strconv.FormatInt(s.Keys, 10)}, {"last audit entry", strconv.FormatInt(s.Sequence, 10)},
		{"its hash", s.Hash}, {"checked", checked},
	}
	for _, f := range s.Findings {
		rows = append(rows, [2]string{"finding", f})
	}
	return t.sheet(title, rows)
}

// Backup implements server.Operations. The audit entry comes first, so that a copy that is broken
// off leaves one too.
func (o *operations) Backup(ctx context.Context, op keys.Operator) (server.Backup, error) {
	s, err := o.db.opened()
	if err != nil {
		return nil, err
	}
	if s.Engine() != sqlstore.SQLite {
		return nil, &keys.Error{Code: api.InvalidRequest, Detail: howPostgres}
	}
	if !o.backingUp.TryLock() {
		return nil, &keys.Error{Code: api.Unavailable, Detail: "A backup is running already; ask again when it is done."}
	}
	b, err := o.beginBackup(ctx, s, op)
	if err != nil {
		o.backingUp.Unlock()
		return nil, err
	}
	return &runningBackup{b, sync.OnceFunc(o.backingUp.Unlock)}, nil
}

func (o *operations) beginBackup(ctx context.Context, s *sqlstore.Store, op keys.Operator) (*sqlstore.Backup, error) {
	now, err := s.Now(ctx)
	if err != nil {
		return nil, err
	}
	err = s.Record(ctx, keys.AuditEntry{
		At: now, Actor: "operator", Action: keys.ActBackup, Outcome: keys.Done,
		RemoteAddress: op.RemoteAddress, RequestID: op.RequestID,
	})
	if err != nil {
		return nil, err
	}
	return s.Backup(ctx)
}

// runningBackup lets the next backup begin once it is closed.
type runningBackup struct {
	*sqlstore.Backup
	unlock func()
}

// Close implements io.Closer.
func (b *runningBackup) Close() error {
	defer b.unlock()
	return b.Backup.Close()
}
