//go:build !linux

package bench

import (
	"context"
	"errors"
	"io"
)

func run(context.Context, Options, io.Writer, io.Writer) error {
	return errors.New("weir bench needs Linux: it reads processor and memory use from /proc")
}
