package main

import (
	"os"
	"os/exec"
)

// shell runs the master key command.
var shell = [2]string{"cmd", "/C"}

func endWithChildren(*exec.Cmd) {}

func keepOwner(*os.File, os.FileInfo) error { return nil }
