package people

import (
	"math/rand/v2"

	"github.com/brianvoe/gofakeit/v7"
)

// script is a writing system with some common names in it.
type script struct {
	given, family, places     []string
	locale, timezone, country string
}

// name joins a given and a family name at random. Latin ones come from gofakeit.
func (s script) name(rng *rand.Rand, fake *gofakeit.Faker) (given, family string) {
	if s.given == nil {
		return fake.FirstName(), fake.LastName()
	}
	return s.given[rng.IntN(len(s.given))], s.family[rng.IntN(len(s.family))]
}

func scripts() []script {
	return []script{
		{nil, nil, []string{"Springfield", "Łódź", "Århus", "São Paulo", "Y"}, "en-US", "America/New_York", "US"},
		{[]string{"Анна", "Иван", "Мария", "Пётр", "Ольга", "Юлия", "Ы"}, []string{"Иванова", "Петров", "Щербаков", "Ким", "Ё"},
			[]string{"Москва", "Санкт-Петербург", "Йошкар-Ола"}, "ru-RU", "Europe/Moscow", "RU"},
		{[]string{"Ганна", "Їжак", "Олексій"}, []string{"Шевченко", "Ґудзь", "Коваль"}, []string{"Київ", "Львів"}, "uk-UA", "Europe/Kyiv", "UA"},
		{[]string{"Әлия", "Нұрлан", "Айгүл"}, []string{"Қасымов", "Әбілов"}, []string{"Алматы", "Өскемен"}, "kk-KZ", "Asia/Almaty", "KZ"},
		{[]string{"محمد", "فاطمة", "عبد الله", "نور"}, []string{"الأحمد", "حسن", "المصري"}, []string{"القاهرة", "الرياض"}, "ar-EG", "Africa/Cairo", "EG"},
		{[]string{"דוד", "שָׂרָה", "נועה"}, []string{"כהן", "לוי", "מזרחי"}, []string{"ירושלים", "תל אביב"}, "he-IL", "Asia/Jerusalem", "IL"},
		{[]string{"伟", "小明", "芳"}, []string{"王", "李", "欧阳"}, []string{"北京市", "上海"}, "zh-CN", "Asia/Shanghai", "CN"},
		{[]string{"花子", "太郎", "さくら", "ケン"}, []string{"佐藤", "鈴木", "𠮷田"}, []string{"東京都", "大阪市"}, "ja-JP", "Asia/Tokyo", "JP"},
		{[]string{"민준", "서연", "지우"}, []string{"김", "이", "박"}, []string{"서울", "부산"}, "ko-KR", "Asia/Seoul", "KR"},
		{[]string{"आरव", "प्रिया", "कृष्ण"}, []string{"शर्मा", "सिंह"}, []string{"दिल्ली", "मुंबई"}, "hi-IN", "Asia/Kolkata", "IN"},
		{[]string{"สมชาย", "กัญญา"}, []string{"สุขใจ", "แก้วมณี"}, []string{"กรุงเทพฯ", "เชียงใหม่"}, "th-TH", "Asia/Bangkok", "TH"},
		{[]string{"Γιώργος", "Ελένη"}, []string{"Παπαδόπουλος", "Ιωάννου"}, []string{"Αθήνα", "Θεσσαλονίκη"}, "el-GR", "Europe/Athens", "GR"},
		{[]string{"ნინო", "გიორგი"}, []string{"ბერიძე", "კაპანაძე"}, []string{"თბილისი", "ბათუმი"}, "ka-GE", "Asia/Tbilisi", "GE"},
		{[]string{"İrem", "Çağla", "Işıl"}, []string{"Yılmaz", "Öztürk"}, []string{"İstanbul", "Iğdır"}, "tr-TR", "Europe/Istanbul", "TR"},
		{[]string{"Nguyễn Thị", "Đức", "Thuỷ"}, []string{"Trần", "Phạm", "Ổ"}, []string{"Hà Nội", "Đà Nẵng"}, "vi-VN", "Asia/Ho_Chi_Minh", "VN"},
		{[]string{"Zoë", "Groß", "José María", "Þór", "Ann-Kathrin"}, []string{"Müller-Lüdenscheidt", "d’Àvila", "O’Brien", "van den Berg"},
			[]string{"Köln", "A Coruña"}, "de-DE", "Europe/Berlin", "DE"},
	}
}

// country is a prefix of mobile numbers and how many digits follow it.
type country struct {
	prefix string
	digits int
}

func countries() []country {
	return []country{
		{"+7916", 7}, {"+1212", 7}, {"+4477", 8}, {"+49151", 8}, {"+336", 8}, {"+9198", 8}, {"+86138", 8},
		{"+8190", 8}, {"+55119", 8}, {"+38050", 7}, {"+7701", 7}, {"+97250", 7}, {"+2010", 8}, {"+9665", 8},
		{"+90532", 7}, {"+8210", 8}, {"+346", 8}, {"+39347", 7}, {"+614", 8}, {"+234803", 7}, {"+5255", 8},
		{"+4851", 7}, {"+6681", 7}, {"+3069", 8}, {"+8490", 7},
	}
}
