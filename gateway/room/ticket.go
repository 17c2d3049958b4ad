package room

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"time"
)

// What a signature is for.
const (
	kindTicket byte = 1
	kindPass   byte = 2
	kindDraw   byte = 3
)

// ticketBytesMax bounds the text of a ticket or a pass.
const ticketBytesMax = 512

// errForged says that a ticket or a pass is not one of ours, or not the caller's, or over.
var errForged = errors.New("it is not one that was given to this user for this campaign, or it is over")

// sign returns a text that stands for facts of a user in a campaign: bytes that only who has the key can make. User and campaign are not in it,
// but in what is signed: the text is of use to nobody else.
func sign(key []byte, kind byte, campaignID, user string, facts ...uint64) string {
	var text []byte
	for _, fact := range facts {
		text = binary.BigEndian.AppendUint64(text, fact)
	}
	mac := seal(key, kind, campaignID, user, text)
	return base64.RawURLEncoding.EncodeToString(append(text, mac...))
}

// verify returns the facts of a text that sign made.
func verify(key []byte, kind byte, campaignID, user, text string, count int) ([]uint64, error) {
	if len(text) > ticketBytesMax {
		return nil, errForged
	}
	data, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(data) != 8*count+sha256.Size {
		return nil, errForged
	}
	signed, mac := data[:8*count], data[8*count:]
	if !hmac.Equal(mac, seal(key, kind, campaignID, user, signed)) {
		return nil, errForged
	}
	facts := make([]uint64, count)
	for i := range facts {
		facts[i] = binary.BigEndian.Uint64(signed[8*i:])
	}
	return facts, nil
}

// seal returns the HMAC-SHA256 of what a text stands for. Lengths go in, so that no two things are written alike.
func seal(key []byte, kind byte, campaignID, user string, text []byte) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte{kind})
	for _, part := range [...]string{campaignID, user, string(text)} {
		mac.Write(binary.BigEndian.AppendUint32(nil, uint32(len(part))))
		mac.Write([]byte(part))
	}
	return mac.Sum(nil)
}

// rankOf returns the rank of a user who enters a campaign's room now.
func rankOf(key []byte, campaign Campaign, user string, now time.Time) rank {
	return rank{
		late: max(0, int64(now.Sub(campaign.OpensAt))),
		draw: binary.BigEndian.Uint64(seal(key, kindDraw, campaign.CampaignID, user, nil)),
	}
}

// newTicket returns the ticket of a rank. It begins with the campaign, which the holder's gateway needs to know.
func newTicket(key []byte, campaignID, user string, at rank) string {
	return campaignID + "." + sign(key, kindTicket, campaignID, user, uint64(at.late), at.draw)
}

func newPass(key []byte, campaignID, user string, until time.Time) string {
	return sign(key, kindPass, campaignID, user, uint64(until.UnixNano()))
}
