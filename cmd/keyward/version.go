package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// version is set by a release build: -ldflags "-X main.version=1.2.3".
var version string

// buildVersion is the released version, or what the Go toolchain knows of the source.
func buildVersion() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "devel"
	}
	return info.Main.Version
}

type versionCmd struct {
	format
}

// Help implements kong.HelpProvider.
func (versionCmd) Help() string {
	return `Example:

    keyward version --output json`
}

// Run prints the version.
func (c *versionCmd) Run(t *terminal) error {
	v := struct {
		Version  string `json:"version"`
		Go       string `json:"go"`
		Platform string `json:"platform"`
	}{buildVersion(), runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
	return c.show(t, v, func() error {
		_, err := fmt.Fprintf(t.out, "keyward %s (%s, %s)\n", v.Version, v.Go, v.Platform)
		return err
	})
}
