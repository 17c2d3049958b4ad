//go:build !race

package lanes

const simSeedsDefault = 1000
