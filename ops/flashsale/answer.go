package flashsale

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"
)

// An answer is what a request came to.
type answer struct {
	// reply is the encoded reply of a request that took effect, valid until the connection's next one.
	reply []byte
	// reason of a refusal, which stands.
	reason string
	// later says that the answer was to ask again, after delay. fault is what it said, for people.
	later bool
	delay time.Duration
	fault string
}

// decodedMax is how many different failures a decoder keeps.
const decodedMax = 64

// A decoder reads failures. A sold-out product fails a hundred thousand times with the same bytes, so it remembers them.
type decoder struct{ known map[string]answer }

func newDecoder() decoder { return decoder{known: map[string]answer{}} }

// failure reads the body of a reply whose status is not 200.
func (d *decoder) failure(status int, body []byte) answer {
	if a, seen := d.known[string(body)]; seen {
		return a
	}
	a := decodeFailure(status, body)
	if len(d.known) < decodedMax {
		d.known[string(body)] = a
	}
	return a
}

// decodeFailure reads an error of the Connect protocol. What is not a business answer has an unknown outcome, and is
// asked again.
func decodeFailure(status int, body []byte) answer {
	var failure struct {
		Code    string `json:"code"`
		Message string `json:"message"`
		Details []struct {
			Type  string `json:"type"`
			Value string `json:"value"`
		} `json:"details"`
	}
	if json.Unmarshal(body, &failure) != nil {
		return answer{later: true, fault: fmt.Sprintf("status %d: %.200q", status, body)}
	}
	a := answer{fault: failure.Code + ": " + failure.Message}
	reason := failure.Code
	for _, detail := range failure.Details {
		value, err := base64.RawStdEncoding.DecodeString(detail.Value)
		if err != nil {
			continue // A detail that cannot be read: code and message stand without it.
		}
		var info errdetails.ErrorInfo
		var retry errdetails.RetryInfo
		switch {
		case detail.Type == "google.rpc.ErrorInfo" && proto.Unmarshal(value, &info) == nil && info.GetReason() != "":
			reason = info.GetReason()
		case detail.Type == "google.rpc.RetryInfo" && proto.Unmarshal(value, &retry) == nil:
			a.delay = retry.GetRetryDelay().AsDuration()
		}
	}
	switch failure.Code {
	case "failed_precondition", "not_found", "invalid_argument", "permission_denied", "unauthenticated", "out_of_range", "already_exists":
		a.reason = reason
	default:
		a.later = true
	}
	return a
}
