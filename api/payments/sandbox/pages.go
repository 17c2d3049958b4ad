package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/weirhq/weir/api/payments"
)

func (s *Server) serveLedger(w http.ResponseWriter, r *http.Request) {
	after, err := queryNumber(r, "after", 0)
	limit, limitErr := queryNumber(r, "limit", ledgerPageMax)
	if err = errors.Join(err, limitErr); err != nil || limit < 1 || limit > ledgerPageMax {
		writeError(w, http.StatusBadRequest, payments.CodeInvalid, fmt.Sprintf("after is a number of an entry, limit is between 1 and %d", ledgerPageMax))
		return
	}
	s.mu.Lock()
	ledger := Ledger{Entries: []Entry{}, Totals: []LedgerTotal{}, Payments: len(s.payments), WebhooksWaiting: s.jobs.webhooks}
	if after < uint64(len(s.entries)) {
		page := s.entries[after:]
		if uint64(len(page)) > limit {
			page, ledger.Next = page[:limit], after+limit
		}
		ledger.Entries = append(ledger.Entries, page...)
	}
	for _, total := range s.totals {
		ledger.Totals = append(ledger.Totals, *total)
	}
	s.mu.Unlock()
	if err := s.journal.sync(); err != nil {
		writeError(w, http.StatusInternalServerError, "journal", "the journal failed")
		return
	}
	writeJSON(w, http.StatusOK, ledger)
}

func queryNumber(r *http.Request, name string, fallback uint64) (uint64, error) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return fallback, nil
	}
	return strconv.ParseUint(text, 10, 63)
}

func (s *Server) serveFaults(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	faults := s.mischief.faults
	s.mu.Unlock()
	writeJSON(w, http.StatusOK, faults)
}

func (s *Server) setFaults(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var faults Faults
	if err == nil {
		err = strictJSON(body, &faults)
	}
	if err == nil {
		err = faults.Validate()
	}
	if err != nil {
		writeError(w, http.StatusBadRequest, payments.CodeInvalid, err.Error())
		return
	}
	s.mu.Lock()
	s.mischief = newMischief(faults)
	s.mu.Unlock()
	writeJSON(w, http.StatusOK, faults)
}

func serveIndex(w http.ResponseWriter, _ *http.Request) {
	var b strings.Builder
	b.WriteString("Weir's sandbox payment provider. It takes no real money.\n\nPayment methods:\n\n")
	for _, token := range Tokens() {
		fmt.Fprintf(&b, "  %-26s %s\n", token.Name, token.Meaning)
	}
	b.WriteString("\nGET /ledger shows every movement of money. GET /faults shows what goes wrong, POST /faults replaces it.\n")
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, b.String())
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	data, err := json.Marshal(body)
	if err != nil {
		panic(err) // Every body is of our own types.
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(data, '\n')) // Who has left does not read it.
}

func writeError(w http.ResponseWriter, status int, code, message string) {
	body := refusal(status, code, "%s", message)
	writeJSON(w, status, body.body)
}
