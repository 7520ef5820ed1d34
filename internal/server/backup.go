package server

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

// Backup is a copy of the database that is ready to be sent.
type Backup interface {
	io.WriterTo
	io.Closer
	Bytes() int64 // how many WriteTo writes
}

const (
	// backupChunk is how much of a copy is handed to the connection at a time.
	backupChunk = 256 << 10
	// backupStall is how long the client may take for one chunk. While it does, the write-ahead log
	// grows.
	backupStall = 30 * time.Second
)

// backup answers with the database file. Its length is known before its first byte, so a client sees
// when the answer breaks off.
func (s *Server) backup(x *exchange) error {
	b, err := s.cfg.Operations.Backup(x.ctx, operator(x.call))
	if err != nil {
		return unavailable(err)
	}
	defer b.Close()
	h := x.Header()
	h["Content-Type"] = []string{"application/vnd.sqlite3"}
	h.Set("Content-Length", strconv.FormatInt(b.Bytes(), 10))
	x.WriteHeader(http.StatusOK)
	w := &patientWriter{w: x, control: http.NewResponseController(x), stall: backupStall}
	_, err = b.WriteTo(w)
	if err == nil {
		err = w.flush()
	}
	if err != nil { // the answer has begun: that it is too short is all the client can be told
		s.cfg.Logger.WarnContext(x.ctx, "a backup was broken off", "request_id", x.requestID, "error", err)
	}
	return nil
}

// patientWriter collects chunks and gives the client a time for each.
type patientWriter struct {
	w       io.Writer
	control *http.ResponseController
	stall   time.Duration // for one chunk
	chunk   []byte
}

// Write implements io.Writer.
func (w *patientWriter) Write(b []byte) (int, error) {
	if len(w.chunk)+len(b) > backupChunk {
		if err := w.flush(); err != nil {
			return 0, err
		}
	}
	w.chunk = append(w.chunk, b...)
	return len(b), nil
}

func (w *patientWriter) flush() error {
	if err := w.control.SetWriteDeadline(time.Now().Add(w.stall)); err != nil {
		return fmt.Errorf("set the write deadline: %w", err)
	}
	_, err := w.w.Write(w.chunk)
	w.chunk = w.chunk[:0]
	return err
}
