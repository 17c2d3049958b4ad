package domain

import (
	"fmt"
	"time"
)

// A Note of an order.
type Note struct {
	By string
	At time.Time
	// Sealed is the text, sealed under the user's key. Nobody changes it.
	Sealed []byte
}

// AddNote notes something about an order, for the merchant.
type AddNote struct {
	OrderID OrderID
	// Number of the note, counted from 1; the lane fills in the next.
	Number int
	// By is the subject who wrote it.
	By string
	// Sealed is the text, sealed under the user's key of the id SealKey.
	Sealed  []byte
	SealKey KeyID
}

// NoteAdded says that something was noted about an order.
type NoteAdded struct {
	OrderID OrderID
	UserID  string
	By      string
	Sealed  []byte
	// NoteID names the note; empty in those of old.
	NoteID string
}

func (AddNote) isCommand() {}
func (NoteAdded) isEvent() {}

func (c AddNote) decide(s State) ([]Event, error) {
	if err := checkText("by", c.By, SubjectBytesMax); err != nil {
		return nil, err
	}
	if size := len(c.Sealed); size == 0 || size > SealedNoteBytesMax {
		return nil, &InvalidArgumentError{Argument: "sealed_note", Problem: fmt.Sprintf("it has %d bytes, want 1 to %d", size, SealedNoteBytesMax)}
	}
	order, v, err := lifeOf(s, c.OrderID, &lifeAddNote)
	if err != nil || v == nothing {
		return nil, err
	}
	if done, err := numbered("notes", c.Number, len(order.Notes), NotesMax); done || err != nil {
		return nil, err
	}
	if s.KeyErased(order.UserID, c.SealKey) {
		return nil, &KeyErasedError{UserID: order.UserID}
	}
	return []Event{NoteAdded{OrderID: order.ID, UserID: order.UserID, By: c.By, Sealed: c.Sealed, NoteID: NoteID(order.ID, c.Number)}}, nil
}
