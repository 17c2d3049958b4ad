package lastgood

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

type list struct {
	Format string   `json:"format"`
	Names  []string `json:"names"`
}

func TestWhatWasWrittenLastIsRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "list.json")
	var got list
	for _, none := range []string{"", path} {
		if found, err := Read(none, "list 1", 1000, &got); found || err != nil {
			t.Fatalf("%q: got %t, %v, want nothing", none, found, err)
		}
	}
	for _, names := range [][]string{{"a", "b", "c"}, {"d"}} {
		if err := Write(path, &list{"list 1", names}); err != nil {
			t.Fatal(err)
		}
		got = list{}
		if found, err := Read(path, "list 1", 1000, &got); !found || err != nil || strings.Join(got.Names, " ") != strings.Join(names, " ") {
			t.Fatalf("got %+v, %t, %v, want %q", got, found, err, names)
		}
	}
	if err := os.WriteFile(path+".tmp", []byte("half of a li"), fileMode); err != nil { // As a crash leaves it.
		t.Fatal(err)
	}
	if found, err := Read(path, "list 1", 1000, &got); !found || err != nil {
		t.Fatalf("beside a half-written file: %t, %v", found, err)
	}
}

func TestWhatCannotBeUsedIsSaid(t *testing.T) {
	path := filepath.Join(t.TempDir(), "list.json")
	for text, want := range map[string]string{
		"":                                     "is damaged",
		`{"format":"list 1","names":["a"`:      "is damaged",
		`{"format":"list 1","names":"a"}`:      "is damaged",
		`{"format":"list 2","names":["a"]}`:    `has the format "list 2", want "list 1"`,
		`{"names":["a"]}`:                      `has the format "", want "list 1"`,
		`{"format":"list 1","names":["aaaa"]}`: "has more than 35 bytes",
	} {
		if err := os.WriteFile(path, []byte(text), fileMode); err != nil {
			t.Fatal(err)
		}
		var got list
		if found, err := Read(path, "list 1", 35, &got); found || err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "remove it") {
			t.Errorf("%s: got %t, %v, want %q", text, found, err, want)
		}
	}
}
