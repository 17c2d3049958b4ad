//go:build !unix

package main

import "os"

// terminalWidth returns 0: without a known terminal, output is plain.
func terminalWidth(*os.File) int { return 0 }
