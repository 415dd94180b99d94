package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// What is logged anywhere in this program is either known to be harmless or not worth a line of code: an attribute
// that is not in the list is left out without a word.
func TestEveryAttributeThatIsLoggedMayBeLogged(t *testing.T) {
	const root = "../../.."
	methods := map[string]int{"Debug": 1, "Info": 1, "Warn": 1, "Error": 1, "With": 0} // where attributes begin
	seen := 0
	for _, dir := range []string{"keys", "vault/kv"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			files := token.NewFileSet()
			file, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				method, ok := call.Fun.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				from, ok := methods[method.Sel.Name]
				if !ok || !isLogger(method.X) {
					return true
				}
				for i := from; i < len(call.Args); i += 2 {
					key, ok := call.Args[i].(*ast.BasicLit)
					if !ok {
						t.Errorf("%v: the name of an attribute is not written out", files.Position(call.Args[i].Pos()))
						continue
					}
					name, err := strconv.Unquote(key.Value)
					if err != nil || !logged[name] {
						t.Errorf("%v: attribute %s is logged, and left out", files.Position(key.Pos()), key.Value)
					}
					seen++
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if seen < 50 {
		t.Errorf("only %d attributes were found", seen)
	}
}

// isLogger goes by the name.
func isLogger(x ast.Expr) bool {
	switch x := x.(type) {
	case *ast.Ident:
		return x.Name == "log" || x.Name == "logger"
	case *ast.SelectorExpr:
		return x.Sel.Name == "Logger" || x.Sel.Name == "log" || x.Sel.Name == "logger"
	}
	return false
}
