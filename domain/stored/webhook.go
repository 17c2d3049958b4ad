package stored

import "github.com/weirhq/weir/domain"

func sizeEndpoint(e *domain.WebhookEndpointPut) int {
	size := sizeText(e.URL) + sizeText(e.SealedSecret) + sizeVarint(flag(e.Paused)) + sizeText(e.By)
	for _, name := range e.Types {
		size += sizeInner(len(name))
	}
	return size
}

func appendEndpoint(dst []byte, e *domain.WebhookEndpointPut) []byte {
	dst = appendText(dst, 1, e.URL)
	dst = appendText(dst, 2, e.SealedSecret)
	for _, name := range e.Types {
		dst = append(appendInner(dst, 3, len(name)), name...)
	}
	dst = appendVarint(dst, 4, flag(e.Paused))
	return appendText(dst, 5, e.By)
}

func flag(set bool) uint64 {
	if set {
		return 1
	}
	return 0
}

func readWebhookEndpointPut(endpointID, _ string, payload []byte) (domain.Event, error) {
	e := domain.WebhookEndpointPut{EndpointID: endpointID}
	f := fieldsOf(payload)
	for f.next() {
		switch f.tag {
		case 1<<3 | kindBytes:
			e.URL = f.text()
		case 2<<3 | kindBytes:
			e.SealedSecret = append([]byte(nil), f.data[f.from:f.at]...)
		case 3<<3 | kindBytes:
			e.Types = append(e.Types, f.text())
		case 4<<3 | kindVarint:
			e.Paused = f.v != 0
		case 5<<3 | kindBytes:
			e.By = f.text()
		}
	}
	return e, f.err
}

func readWebhookEndpointDeleted(endpointID, _ string, payload []byte) (domain.Event, error) {
	e := domain.WebhookEndpointDeleted{EndpointID: endpointID}
	f := fieldsOf(payload)
	for f.next() {
		if f.tag == 1<<3|kindBytes {
			e.By = f.text()
		}
	}
	return e, f.err
}
