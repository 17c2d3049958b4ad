package plan

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Names on the server.
const (
	// Bucket has the plans, and what is active.
	Bucket = "WEIR-PLANS"
	// AuditStream has every change that was ever written into the bucket, also by other tools.
	AuditStream = "WEIR-PLAN-AUDIT"

	activeKey     = "active"
	planKeyPrefix = "plan."
	recordFormat  = "weir plans 1"
)

// A Change says who did what, when and why. It is part of the record that it made, so that there is neither without the other.
type Change struct {
	// ID tells an attempt to write from another one of the same.
	ID string `json:"id"`
	// Verb is one of those below.
	Verb string `json:"verb"`
	// Plan is the label of the plan that it is about; empty for a rollback.
	Plan string `json:"plan,omitempty"`
	// By is who did it, as he says: the server's permissions say who may.
	By string `json:"by"`
	// At is when, by his clock.
	At  time.Time `json:"at"`
	Why string    `json:"why,omitempty"`
	// From and To are the labels of what was active before and is after it. What had ended by itself is in neither.
	From []string `json:"from,omitempty"`
	To   []string `json:"to,omitempty"`
}

// The verbs of changes. Changed is what somebody did with other tools: it says not who.
const (
	VerbPut      = "put"
	VerbApply    = "apply"
	VerbEnd      = "end"
	VerbRollback = "rollback"
	VerbChanged  = "changed"
)

// A planRecord is a version of a plan in the bucket. Its text is as it was put, comments and all.
type planRecord struct {
	Format string `json:"format"`
	Change Change `json:"change"`
	Text   string `json:"text"`
}

// An activeRecord says what is active. Plans are in it as a whole, so that a gateway needs nothing else.
type activeRecord struct {
	Format string         `json:"format"`
	Change Change         `json:"change"`
	Active []activeInForm `json:"active"`
	// Before is the revision of the record that a rollback goes back to; 0 is before the first.
	Before uint64 `json:"before"`
}

type activeInForm struct {
	Revision uint64    `json:"revision"`
	Text     string    `json:"text"`
	At       time.Time `json:"at"`
	Until    time.Time `json:"until"`
	By       string    `json:"by"`
	Why      string    `json:"why,omitempty"`
}

// parse returns the plans of the record, strictly: one that is not understood would do something else than it says.
func (r *activeRecord) parse() ([]Applied, error) {
	if len(r.Active) > ActiveMax {
		return nil, fmt.Errorf("%d plans are active, want at most %d", len(r.Active), ActiveMax)
	}
	all := make([]Applied, 0, len(r.Active))
	for _, one := range r.Active {
		plan, err := Parse([]byte(one.Text))
		switch {
		case err != nil:
			return nil, fmt.Errorf("active plan %q at revision %d: %w", plan.Name, one.Revision, err)
		case one.Until.IsZero():
			return nil, fmt.Errorf("active plan %s has no end", labelOf(plan.Name, one.Revision))
		}
		all = append(all, Applied{Plan: plan, Revision: one.Revision, At: one.At, Until: one.Until, By: one.By, Why: one.Why})
	}
	return all, nil
}

// at returns the plans of the record that have not ended, as they are in it.
func (r *activeRecord) at(now time.Time) []activeInForm {
	left := []activeInForm{}
	for _, one := range r.Active {
		if now.Before(one.Until) {
			left = append(left, one)
		}
	}
	return left
}

// labels names plans of a record, in its order.
func labels(of []activeInForm) []string {
	all := []string{}
	for _, one := range of {
		name := "?"
		if plan, err := Parse([]byte(one.Text)); err == nil || plan.Name != "" {
			name = plan.Name
		}
		all = append(all, labelOf(name, one.Revision))
	}
	return all
}

// errFormat says that a record is none of this version.
var errFormat = errors.New("the record has another format than " + recordFormat + ": a newer version of weir wrote it, or another tool")

// decode reads a record of the bucket.
func decode[R planRecord | activeRecord](value []byte) (*R, error) {
	var record R
	var head struct {
		Format string `json:"format"`
	}
	if err := json.Unmarshal(value, &head); err != nil {
		return nil, fmt.Errorf("the record is no JSON: %w", err)
	}
	if head.Format != recordFormat {
		return nil, errFormat
	}
	if err := json.Unmarshal(value, &record); err != nil {
		return nil, fmt.Errorf("the record is damaged: %w", err)
	}
	return &record, nil
}

func encode[R planRecord | activeRecord](record *R) ([]byte, error) {
	value, err := json.Marshal(record)
	if err != nil {
		return nil, fmt.Errorf("write the record: %w", err)
	}
	return value, nil
}

// Limits of what people say.
const (
	byBytesMax  = 128
	whyBytesMax = 1000
)

// validateWords says what is wrong with who and why.
func validateWords(by, why string) error {
	switch {
	case strings.TrimSpace(by) == "" || len(by) > byBytesMax:
		return fmt.Errorf("who does it is %q; give 1 to %d bytes", by, byBytesMax)
	case len(why) > whyBytesMax:
		return fmt.Errorf("why has %d bytes, want at most %d", len(why), whyBytesMax)
	}
	return nil
}
