//go:build !race

package paying_test

const killsMin = 200
