package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// catchHangups has SIGHUP arrive on a channel instead of ending the process (R11).
func catchHangups() chan os.Signal {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	return hangups
}

// rereadOn reads every file again at each hangup, until stop is called.
func (n *node) rereadOn(hangups <-chan os.Signal) (stop func()) {
	stopped, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-hangups:
				n.cfg.logger.Info("SIGHUP: reading the files again")
				n.cfg.files.All()
			case <-stopped:
				return
			}
		}
	}()
	return func() {
		close(stopped)
		<-done
	}
}

// untilHangup ends ctx at SIGHUP too, as a program in a terminal that is closed should end, unless
// the program was started to ignore it (nohup).
func untilHangup(ctx context.Context) (context.Context, context.CancelFunc) {
	if signal.Ignored(syscall.SIGHUP) {
		return context.WithCancel(ctx)
	}
	return signal.NotifyContext(ctx, syscall.SIGHUP)
}
