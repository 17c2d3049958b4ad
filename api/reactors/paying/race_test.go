//go:build race

package paying_test

// killsMin is small under the race detector, which makes a start slow.
const killsMin = 50
