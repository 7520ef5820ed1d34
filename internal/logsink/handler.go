package logsink

import (
	"context"
	"io"
	"log/slog"
	"time"
)

// handler formats each record before it is queued, so that no attribute is kept.
type handler struct {
	ordinary, urgent slog.Handler // the same but for the room their lines may take
}

// Handler returns a handler that writes to the sink in the format that newHandler makes. Lines of
// level warn and above find room when lines below no longer do. The sink then reports dropped lines
// in this format.
func (s *Sink) Handler(newHandler func(io.Writer) slog.Handler) slog.Handler {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.report = func(out io.Writer, lines uint64) error {
		r := slog.NewRecord(time.Now(), slog.LevelWarn, "log lines were dropped", 0)
		r.AddAttrs(slog.Uint64("lines", lines))
		return newHandler(out).Handle(context.Background(), r)
	}
	return &handler{newHandler(ordinaryLines{s}), newHandler(s)}
}

// ordinaryLines are the lines of a sink that leave room for urgent ones.
type ordinaryLines struct{ sink *Sink }

func (w ordinaryLines) Write(b []byte) (int, error) {
	w.sink.enqueue(b, maxQueued-reserved)
	return len(b), nil
}

// Enabled implements slog.Handler.
func (h *handler) Enabled(ctx context.Context, l slog.Level) bool {
	return h.ordinary.Enabled(ctx, l)
}

// Handle implements slog.Handler.
func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelWarn {
		return h.urgent.Handle(ctx, r)
	}
	return h.ordinary.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &handler{h.ordinary.WithAttrs(attrs), h.urgent.WithAttrs(attrs)}
}

// WithGroup implements slog.Handler.
func (h *handler) WithGroup(name string) slog.Handler {
	return &handler{h.ordinary.WithGroup(name), h.urgent.WithGroup(name)}
}
