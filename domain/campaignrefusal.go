package domain

import (
	"fmt"
	"strconv"
	"time"
)

// CampaignNotFoundError refuses a campaign that is not there, or is not of this SKU.
type CampaignNotFoundError struct{ CampaignID, SKU string }

func (e *CampaignNotFoundError) Error() string {
	if e.SKU == "" {
		return "there is no campaign " + clip(e.CampaignID)
	}
	return fmt.Sprintf("there is no campaign %s of %s", clip(e.CampaignID), clip(e.SKU))
}

// Unwrap returns ErrCampaignNotFound.
func (e *CampaignNotFoundError) Unwrap() error { return ErrCampaignNotFound }

// Reason returns ReasonCampaignNotFound.
func (e *CampaignNotFoundError) Reason() Reason { return ReasonCampaignNotFound }

// Facts returns the campaign and the SKU, if one was named.
func (e *CampaignNotFoundError) Facts() map[string]string {
	if e.SKU == "" {
		return map[string]string{"campaign_id": clip(e.CampaignID)}
	}
	return map[string]string{"campaign_id": clip(e.CampaignID), "sku": clip(e.SKU)}
}

// CampaignNotOpenError refuses an order that comes before its campaign opens.
type CampaignNotOpenError struct {
	CampaignID string
	OpensAt    time.Time
	// OpensIn is how long that is from the log time of the refusal.
	OpensIn time.Duration
}

func (e *CampaignNotOpenError) Error() string {
	return fmt.Sprintf("campaign %s opens at %s", e.CampaignID, timeText(e.OpensAt))
}

// Unwrap returns ErrCampaignNotOpen.
func (e *CampaignNotOpenError) Unwrap() error { return ErrCampaignNotOpen }

// Reason returns ReasonCampaignNotOpen.
func (e *CampaignNotOpenError) Reason() Reason { return ReasonCampaignNotOpen }

// Facts returns the campaign and when it opens.
func (e *CampaignNotOpenError) Facts() map[string]string {
	return map[string]string{"campaign_id": e.CampaignID, "opens_at": timeText(e.OpensAt)}
}

// CampaignClosedError refuses an order that comes after its campaign closed.
type CampaignClosedError struct {
	CampaignID string
	ClosedAt   time.Time
}

func (e *CampaignClosedError) Error() string {
	return fmt.Sprintf("campaign %s closed at %s", e.CampaignID, timeText(e.ClosedAt))
}

// Unwrap returns ErrCampaignClosed.
func (e *CampaignClosedError) Unwrap() error { return ErrCampaignClosed }

// Reason returns ReasonCampaignClosed.
func (e *CampaignClosedError) Reason() Reason { return ReasonCampaignClosed }

// Facts returns the campaign and when it closed.
func (e *CampaignClosedError) Facts() map[string]string {
	return map[string]string{"campaign_id": e.CampaignID, "closed_at": timeText(e.ClosedAt)}
}

// CampaignMaxPerOrderError refuses an order that wants more units than one order of the campaign may hold.
type CampaignMaxPerOrderError struct {
	CampaignID  string
	Limit, Want int64
}

func (e *CampaignMaxPerOrderError) Error() string {
	return fmt.Sprintf("an order of campaign %s holds at most %d units, %d wanted", e.CampaignID, e.Limit, e.Want)
}

// Unwrap returns ErrCampaignMaxPerOrder.
func (e *CampaignMaxPerOrderError) Unwrap() error { return ErrCampaignMaxPerOrder }

// Reason returns ReasonCampaignMaxPerOrder.
func (e *CampaignMaxPerOrderError) Reason() Reason { return ReasonCampaignMaxPerOrder }

// Facts returns the campaign, the limit and what was wanted.
func (e *CampaignMaxPerOrderError) Facts() map[string]string {
	return map[string]string{"campaign_id": e.CampaignID, "limit": decimal(e.Limit), "want": decimal(e.Want)}
}

// CampaignLimitError refuses units beyond what one user may hold of a campaign over all orders.
type CampaignLimitError struct {
	CampaignID           string
	Limit, Already, Want int64
}

func (e *CampaignLimitError) Error() string {
	return fmt.Sprintf("a user holds at most %d units of campaign %s: %d wanted, %d held already", e.Limit, e.CampaignID, e.Want, e.Already)
}

// Unwrap returns ErrCampaignLimit.
func (e *CampaignLimitError) Unwrap() error { return ErrCampaignLimit }

// Reason returns ReasonCampaignLimit.
func (e *CampaignLimitError) Reason() Reason { return ReasonCampaignLimit }

// Facts returns the campaign, the limit, what the user holds and what was wanted.
func (e *CampaignLimitError) Facts() map[string]string {
	return map[string]string{
		"campaign_id": e.CampaignID, "limit": decimal(e.Limit), "already": decimal(e.Already), "want": decimal(e.Want),
	}
}

func (*CampaignNotFoundError) isRefusal()    {}
func (*CampaignNotOpenError) isRefusal()     {}
func (*CampaignClosedError) isRefusal()      {}
func (*CampaignMaxPerOrderError) isRefusal() {}
func (*CampaignLimitError) isRefusal()       {}
func decimal(v int64) string                 { return strconv.FormatInt(v, 10) }
func timeText(t time.Time) string            { return t.UTC().Format(time.RFC3339Nano) }
