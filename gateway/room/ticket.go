package room

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"strings"
	"time"
)

// What a signature is for.
const (
	kindTicket byte = 1
	kindPass   byte = 2
	kindDraw   byte = 3
	kindID     byte = 4
)

// ticketBytesMax bounds the text of a ticket or a pass.
const ticketBytesMax = 512

// errForged says that a ticket or a pass is not one of ours, or not the caller's.
var errForged = errors.New("it is not one that was given to this user for this campaign")

// sign returns a text that stands for facts of a user in a campaign: bytes that only who has the key can make. User and campaign are not in it,
// but in what is signed: the text is of use to nobody else.
func (r *ring) sign(now time.Time, kind byte, campaignID, user string, facts ...uint64) string {
	key, id := r.signing(now)
	text := id[:]
	for _, fact := range facts {
		text = binary.BigEndian.AppendUint64(text, fact)
	}
	mac := seal(key.Secret, kind, campaignID, user, text)
	return base64.RawURLEncoding.EncodeToString(append(text, mac...))
}

// verify returns the facts of a text that sign made, and which key signed it. Its errors are errForged and errKeyGone.
func (r *ring) verify(now time.Time, kind byte, campaignID, user, text string, count int) ([]uint64, keyID, error) {
	if len(text) > ticketBytesMax {
		return nil, keyID{}, errForged
	}
	size := keyIDBytes + 8*count
	data, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(data) != size+sha256.Size {
		return nil, keyID{}, errForged
	}
	id := keyID(data[:keyIDBytes])
	key, err := r.verifying(id, now)
	if err != nil {
		return nil, id, err
	}
	signed, mac := data[:size], data[size:]
	if !hmac.Equal(mac, seal(key.Secret, kind, campaignID, user, signed)) {
		return nil, id, errForged
	}
	facts := make([]uint64, count)
	for i := range facts {
		facts[i] = binary.BigEndian.Uint64(signed[keyIDBytes+8*i:])
	}
	return facts, id, nil
}

// seal returns the HMAC-SHA256 of what a text stands for. Lengths go in, so that no two things are written alike.
func seal(secret []byte, kind byte, campaignID, user string, text []byte) []byte {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte{kind})
	for _, part := range [...]string{campaignID, user, string(text)} {
		mac.Write(binary.BigEndian.AppendUint32(nil, uint32(len(part))))
		mac.Write([]byte(part))
	}
	return mac.Sum(nil)
}

// rankOf returns the rank of a user who enters a campaign's room now.
func rankOf(secret []byte, campaign Campaign, user string, now time.Time) rank {
	return rank{
		late: max(0, int64(now.Sub(campaign.OpensAt))),
		draw: binary.BigEndian.Uint64(seal(secret, kindDraw, campaign.CampaignID, user, nil)),
	}
}

// ticket returns the ticket of a rank. It begins with the campaign, which the holder's gateway needs to know.
func (r *ring) ticket(now time.Time, campaignID, user string, at rank) string {
	return campaignID + "." + r.sign(now, kindTicket, campaignID, user, uint64(at.late), at.draw)
}

// readTicket returns the rank that a ticket stands for, and which key signed it.
func (r *ring) readTicket(now time.Time, user, text string) (campaignID string, at rank, signedBy keyID, err error) {
	campaignID, signed, _ := strings.Cut(text, ".")
	facts, signedBy, err := r.verify(now, kindTicket, campaignID, user, signed, 2)
	if err != nil {
		return campaignID, rank{}, signedBy, err
	}
	return campaignID, rank{late: int64(facts[0]), draw: facts[1]}, signedBy, nil
}

// pass returns a pass of a turn, by when its user entered, that is good until a moment.
func (r *ring) pass(now time.Time, campaignID, user string, late int64, until time.Time) string {
	return r.sign(now, kindPass, campaignID, user, uint64(late), uint64(until.UnixNano()))
}

// readPass returns of which turn a pass is, and until when it is good.
func (r *ring) readPass(now time.Time, campaignID, user, text string) (late int64, until time.Time, err error) {
	facts, _, err := r.verify(now, kindPass, campaignID, user, text, 2)
	if err != nil {
		return 0, time.Time{}, err
	}
	return int64(facts[0]), time.Unix(0, int64(facts[1])), nil
}
